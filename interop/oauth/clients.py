"""Does what clients.mjs does, with the OAuth clients of Python."""

import json
import os
import sys

import requests
from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error
from requests_oauthlib import OAuth2Session

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # http

given = json.load(sys.stdin)
url, id = given["issuer"] + "/auth", given["id"]


def plain(query, data, **options):
    answer = requests.post(url + query, data={"grant_type": "client_credentials", **data}, timeout=10, **options)
    return answer.json()


def session(query, scope, **options):
    client = BackendApplicationClient(client_id=id, scope=scope or None)
    try:
        return OAuth2Session(client=client).fetch_token(url + query, **options)
    except OAuth2Error as error:
        return {"error": error.error}


# As str, requests would send Latin-1 by Basic; the server's challenge says charset="UTF-8".
clients = {
    "requests, in the form": lambda secret, scope, query: plain(
        query, {"scope": scope, "client_id": id, "client_secret": secret}
    ),
    "requests, by Basic": lambda secret, scope, query: plain(query, {"scope": scope}, auth=(id, secret.encode())),
    "requests-oauthlib, in the form": lambda secret, scope, query: session(
        query, scope, client_secret=secret, include_client_id=True
    ),
    "requests-oauthlib, by Basic": lambda secret, scope, query: session(query, scope, client_secret=secret.encode()),
}

answers = []
for ask in given["asks"]:
    answer = clients[sys.argv[1]](**ask)
    scope = answer.get("scope")  # requests-oauthlib makes a list of it
    answers.append({
        "token": answer.get("access_token"),
        "scope": " ".join(scope) if isinstance(scope, list) else scope,
        "expires_in": answer.get("expires_in"),
        "error": answer.get("error"),
    })
print(json.dumps(answers))
