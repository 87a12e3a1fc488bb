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
        claims = jwt.decode(token, jwks(), algorithms=["RS256"],
                            issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"])
    except JWTError:
        return "", 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return claims


app.run(port=int(os.environ["PORT"]))
