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

from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication


class Index(APIView):
    authentication_classes = [JWTStatelessUserAuthentication]

    def get(self, request):
        return Response(request.user.id)


urlpatterns = [path("", Index.as_view())]
execute_from_command_line(["manage.py", "runserver", "--noreload", os.environ["PORT"]])
