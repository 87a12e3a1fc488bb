import json
import os

import requests
from cachetools import TTLCache, cached
from flask import Flask, request
from jwcrypto.common import JWException
from jwcrypto.jwk import JWKSet
from jwcrypto.jwt import JWT

app = Flask(__name__)


@cached(TTLCache(maxsize=1, ttl=int(os.environ.get("READ_EVERY", 600))))
def jwks():
    return JWKSet.from_json(requests.get(os.environ["JWKS_URL"], timeout=5).text)


@app.get("/")
def index():
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "", 401, {"WWW-Authenticate": "Bearer"}
    try:
        claims = JWT(jwt=token, key=jwks(), algs=["RS256"], check_claims={
            "iss": os.environ["ISSUER"], "aud": os.environ["AUDIENCE"], "exp": None,
        }).claims
    except (JWException, ValueError):
        return "", 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return json.loads(claims)


app.run(port=int(os.environ["PORT"]))
