package nuncio_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	nunciov1 "nuncio.dev/clients/go/gen/nuncio/v1"
	"nuncio.dev/clients/go/gen/nuncio/v1/nunciov1connect"
)

const (
	addressVariable     = "NUNCIO_TEST_ADDRESS"
	operatorKeyVariable = "NUNCIO_TEST_OPERATOR_KEY"
)

// server is the running Nuncio that the environment names, reached over one protocol.
type server struct {
	events        nunciov1connect.EventServiceClient
	subscriptions nunciov1connect.WebhookSubscriptionServiceClient
}

func TestConnectOverHTTP1(t *testing.T) {
	requireWorkingClient(t, newHTTPClient((*http.Protocols).SetHTTP1))
}

func TestGRPCOverCleartextHTTP2(t *testing.T) {
	requireWorkingClient(t, newHTTPClient((*http.Protocols).SetUnencryptedHTTP2), connect.WithGRPC())
}

// requireWorkingClient makes the calls that a gateway makes: requests, answers and error details all pass the wire.
func requireWorkingClient(t *testing.T, httpClient *http.Client, options ...connect.ClientOption) {
	nuncio := dial(t, httpClient, options...)
	tenant := "go_" + rand.Text()

	t.Run("publishes, and knows the same event again", func(t *testing.T) {
		event := signUp(tenant)
		first := publish(t, nuncio, event)
		if first.GetEventId() != event.GetId() || first.GetDuplicate() {
			t.Errorf("first answer: %v", first)
		}
		if again := publish(t, nuncio, event); !again.GetDuplicate() {
			t.Errorf("second answer: %v", again)
		}
	})

	t.Run("reads the event back", func(t *testing.T) {
		event := signUp(tenant)
		publish(t, nuncio, event)
		answer, err := nuncio.events.GetEvent(t.Context(), &nunciov1.GetEventRequest{TenantId: tenant, Id: event.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		stored := answer.GetEvent()
		if !proto.Equal(stored.GetUser(), event.GetUser()) || stored.GetUserSequence() == 0 {
			t.Errorf("stored: %v", stored)
		}
	})

	t.Run("lists subscriptions", func(t *testing.T) {
		answer, err := nuncio.subscriptions.ListWebhookSubscriptions(
			t.Context(), &nunciov1.ListWebhookSubscriptionsRequest{TenantId: tenant})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(answer.GetWebhookSubscriptions()); n != 0 || answer.GetNextPageToken() != "" {
			t.Errorf("%d subscriptions of a new tenant, next page %q", n, answer.GetNextPageToken())
		}
	})

	t.Run("learns why an event is refused, and every bad field", func(t *testing.T) {
		event := signUp(tenant)
		event.TenantId = ""
		event.User.Id = ""
		_, err := nuncio.events.Publish(t.Context(), &nunciov1.PublishRequest{Event: event})
		if code := connect.CodeOf(err); code != connect.CodeInvalidArgument {
			t.Fatalf("code %v: %v", code, err)
		}
		info, _ := detail[*errdetails.ErrorInfo](err)
		if info.GetReason() != "INVALID_EVENT" || info.GetDomain() != "nuncio" {
			t.Errorf("ErrorInfo: %v", info)
		}
		faults, _ := detail[*errdetails.BadRequest](err)
		var fields []string
		for _, fault := range faults.GetFieldViolations() {
			fields = append(fields, fault.GetField())
		}
		slices.Sort(fields)
		if !slices.Equal(fields, []string{"event.tenant_id", "event.user.id"}) {
			t.Errorf("bad fields: %v", fields)
		}
	})
}

func signUp(tenant string) *nunciov1.Event {
	return &nunciov1.Event{
		Id:       "evt_" + rand.Text(),
		TenantId: tenant,
		Type:     nunciov1.EventType_EVENT_TYPE_USER_CREATED,
		User: &nunciov1.User{
			Id:          "u_1",
			DisplayName: proto.String("Zoë"),
			Status:      nunciov1.UserStatus_USER_STATUS_ACTIVE,
		},
	}
}

func publish(t *testing.T, nuncio server, event *nunciov1.Event) *nunciov1.PublishResponse {
	t.Helper()
	answer, err := nuncio.events.Publish(t.Context(), &nunciov1.PublishRequest{Event: event})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func dial(t *testing.T, httpClient *http.Client, options ...connect.ClientOption) server {
	address, key := os.Getenv(addressVariable), os.Getenv(operatorKeyVariable)
	if address == "" || key == "" {
		t.Skipf("%s and %s name no running server", addressVariable, operatorKeyVariable)
	}
	options = append(options, connect.WithInterceptors(bearer(key)))
	return server{
		events:        nunciov1connect.NewEventServiceClient(httpClient, address, options...),
		subscriptions: nunciov1connect.NewWebhookSubscriptionServiceClient(httpClient, address, options...),
	}
}

// bearer sends the key with every call.
func bearer(key string) connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
			request.Header().Set("Authorization", "Bearer "+key)
			return next(ctx, request)
		}
	})
}

// newHTTPClient speaks the one protocol that choose turns on.
func newHTTPClient(choose func(*http.Protocols, bool)) *http.Client {
	protocols := new(http.Protocols)
	choose(protocols, true)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Protocols: protocols}}
}

// detail finds the error detail of one type.
func detail[T proto.Message](err error) (T, bool) {
	var none T
	var connectError *connect.Error
	if !errors.As(err, &connectError) {
		return none, false
	}
	for _, candidate := range connectError.Details() {
		if value, err := candidate.Value(); err == nil {
			if found, ok := value.(T); ok {
				return found, true
			}
		}
	}
	return none, false
}
