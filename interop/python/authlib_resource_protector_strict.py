import os

import requests
from authlib.integrations.flask_oauth2 import ResourceProtector, current_token
from authlib.jose import JoseError, JsonWebKey, JsonWebToken
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7523.validator import JWTBearerToken
from cachetools import TTLCache, cached
from flask import Flask


@cached(TTLCache(maxsize=1, ttl=int(os.environ.get("READ_EVERY", 600))))
def jwks():
    return JsonWebKey.import_key_set(requests.get(os.environ["JWKS_URL"], timeout=5).json())


class Validator(BearerTokenValidator):
    def authenticate_token(self, token):
        try:
            claims = JsonWebToken(["RS256"]).decode(token, jwks(), claims_cls=JWTBearerToken, claims_options={
                "exp": {"essential": True},
                "iss": {"essential": True, "value": os.environ["ISSUER"]},
                "aud": {"essential": True, "value": os.environ["AUDIENCE"]},
            })
            claims.validate()
            return claims
        except (JoseError, ValueError, KeyError):
            return None  # answered with 401


require_auth = ResourceProtector()
require_auth.register_token_validator(Validator())
app = Flask(__name__)


@app.get("/")
@require_auth()
def index():
    return dict(current_token)


app.run(port=int(os.environ["PORT"]))
