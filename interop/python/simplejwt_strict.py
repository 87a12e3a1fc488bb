import os

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "rest_framework"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.urandom(32).hex(),
    REST_FRAMEWORK={
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    },
    SIMPLE_JWT={
        "ALGORITHM": "RS256", "JWK_URL": os.environ["JWKS_URL"],
        "ISSUER": os.environ["ISSUER"], "AUDIENCE": os.environ["AUDIENCE"],
        "USER_ID_CLAIM": "sub", "TOKEN_TYPE_CLAIM": None,
    },
)
django.setup()

from jwt import PyJWTError
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication
from rest_framework_simplejwt.exceptions import InvalidToken


class Authentication(JWTStatelessUserAuthentication):
    def get_validated_token(self, raw_token):
        try:
            return super().get_validated_token(raw_token)
        except (PyJWTError, TypeError) as error:
            raise InvalidToken("Token is invalid or expired") from error


class Index(APIView):
    authentication_classes = [Authentication]

    def get(self, request):
        return Response(request.user.id)


urlpatterns = [path("", Index.as_view())]
execute_from_command_line(["manage.py", "runserver", "--noreload", os.environ["PORT"]])
