package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// TestReceiver writes down what the recipe beside it, an HTTP handler, makes of arrivals.json.
func TestReceiver(t *testing.T) {
	webhook, err := standardwebhooks.NewWebhook(os.Getenv("WEBHOOK_SECRET"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(receiver(webhook))
	defer server.Close()

	verdicts := []string{}
	for _, arrival := range readArrivals(t) {
		request, err := http.NewRequest(http.MethodPost, server.URL, bytes.NewReader(arrival.Body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range arrival.Headers {
			request.Header.Set(name, value)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		switch answer.StatusCode {
		case http.StatusNoContent:
			verdicts = append(verdicts, "accepted")
		case http.StatusBadRequest:
			verdicts = append(verdicts, "refused")
		default:
			verdicts = append(verdicts, answer.Status)
		}
	}
	text, err := json.Marshal(verdicts)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("verdicts.json", text, 0o600); err != nil {
		t.Fatal(err)
	}
}

type arrival struct {
	Headers map[string]string
	Body    []byte
}

func readArrivals(t *testing.T) []arrival {
	text, err := os.ReadFile("arrivals.json")
	if err != nil {
		t.Fatal(err)
	}
	var arrivals []arrival
	if err := json.Unmarshal(text, &arrivals); err != nil {
		t.Fatal(err)
	}
	return arrivals
}
