import os

import requests
from cachetools import TTLCache, cached
from flask import Flask, request
from jose import JWTError, jwt

app = Flask(__name__)


@cached(TTLCache(maxsize=1, ttl=int(os.environ.get("READ_EVERY", 600))))
def jwks():
    return requests.get(os.environ["JWKS_URL"], timeout=5).json()


@app.get("/")
def index():
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "", 401, {"WWW-Authenticate": "Bearer"}
    try:
        if "crit" in jwt.get_unverified_header(token):
            raise JWTError("unknown extensions")
        claims = jwt.decode(token, jwks(), algorithms=["RS256"],
                            issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"],
                            options={"require_exp": True, "require_aud": True, "require_sub": True})
    except (JWTError, TypeError):
        return "", 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return claims


app.run(port=int(os.environ["PORT"]))
