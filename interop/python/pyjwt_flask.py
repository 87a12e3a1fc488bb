import os

import jwt  # pip install 'pyjwt[crypto]', or Debian's python3-jwt and python3-cryptography
from flask import Flask, request

app = Flask(__name__)
jwks = jwt.PyJWKClient(os.environ["JWKS_URL"])


@app.get("/")
def index():
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "", 401, {"WWW-Authenticate": "Bearer"}
    try:
        claims = jwt.decode(token, jwks.get_signing_key_from_jwt(token).key, algorithms=["RS256"],
                            issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"])
    except jwt.InvalidTokenError:
        return "", 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return claims


app.run(port=int(os.environ["PORT"]))
