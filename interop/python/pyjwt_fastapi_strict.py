import os

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer

app = FastAPI()
oauth2_scheme = OAuth2PasswordBearer(tokenUrl="token")
jwks = jwt.PyJWKClient(os.environ["JWKS_URL"])


def get_current_user(token: str = Depends(oauth2_scheme)):
    credentials_exception = HTTPException(
        status_code=401, detail="Could not validate credentials", headers={"WWW-Authenticate": "Bearer"})
    try:
        payload = jwt.decode(token, jwks.get_signing_key_from_jwt(token).key, algorithms=["RS256"],
                             issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"],
                             options={"require": ["exp"]})
        username = payload.get("sub")
        if username is None:
            raise credentials_exception
    except (jwt.PyJWTError, TypeError):  # PyJWKClientError is not an InvalidTokenError
        raise credentials_exception
    return username


@app.get("/")
async def index(user: str = Depends(get_current_user)):
    return user


uvicorn.run(app, port=int(os.environ["PORT"]))
