"""What the recipe.py beside it, a `verify(raw_body, headers)`, makes of arrivals.json."""

import base64
import json

import recipe


def judge(arrival: dict) -> str:
    try:
        event = recipe.verify(base64.b64decode(arrival["body"]), arrival["headers"])
    except Exception as error:
        return f"refused: {error!r}"
    return "accepted" if event["tenantid"] == "acme" else "no event"


with open("arrivals.json") as arrivals, open("verdicts.json", "w") as verdicts:
    json.dump([judge(arrival) for arrival in json.load(arrivals)], verdicts)
