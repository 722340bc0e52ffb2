"""Django's settings, read top to bottom. Values of the environment come through `llamaproj.env`."""

import hashlib
import hmac
import importlib.util
import socket
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static

from llamaproj import env, logs

BASE_DIR = env.BASE_DIR
# A wheel carries templates and static files inside the package; a checkout has them at the top.
_SHARED = BASE_DIR if env.IN_CHECKOUT else Path(__file__).parent / "shared"

# Security -------------------------------------------------------------------------------------------------------------

SECRET_KEY = env.secret_key()
DEBUG = env.DEBUG
ALLOWED_HOSTS = env.ALLOWED_HOSTS
CSRF_TRUSTED_ORIGINS = env.CSRF_TRUSTED_ORIGINS
# Other sites' pages that may use the APIs with a key, never with the browser's session.
CORS_ALLOWED_ORIGINS = env.CORS_ALLOWED_ORIGINS
# A long conversation sent by a program, with room to spare.
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 1024 * 1024
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = env.SECURE
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SECURE = env.SECURE
SECURE_SSL_REDIRECT = env.SECURE
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.SECURE else None
SECURE_HSTS_SECONDS = 31_536_000 if env.SECURE else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.SECURE
SECURE_HSTS_PRELOAD = env.SECURE
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        # Signing in elsewhere is a form of ours that is redirected there.
        "form-action": [SELF, *([_origin(env.OIDC_SERVER_URL)] if env.OIDC_SERVER_URL else [])],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

# Apps -----------------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    # Its `runserver` speaks WebSocket; to every other process it is a third of a second of loading Twisted.
    *(["daphne"] if "runserver" in sys.argv else []),
    "unfold.apps.BasicAppConfig",
    "llamaproj.apps.PortalAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.usersessions",
    "channels",
    "corsheaders",
    "csp",
    "django_filters",
    "django_htmx",
    "django_structlog",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "heroicons",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "llamaproj.apps.LlamaprojConfig",
    "accounts",
    "models_admin",
    "gateway",
    "chat",
    "monitoring",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "llamaproj.middleware.request_id_header",
    "llamaproj.middleware.ErrorPages",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "accounts.second_factor.Gate",
]

ROOT_URLCONF = "llamaproj.urls"
ASGI_APPLICATION = "llamaproj.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [_SHARED / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "chat.sidebar.context",
            ],
            "builtins": ["heroicons.templatetags.heroicons", "django.contrib.humanize.templatetags.humanize"],
        },
    }
]

# Services -------------------------------------------------------------------------------------------------------------


# A connection over a network that was cut says nothing by itself: it is probed, and given up after so many seconds. The
# server learns the same, or it would go on holding the locks of a machine that is gone.
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES, _GIVE_UP_S = 5, 3, 3, 10
_CONNECT_S = 5


def _probed_database() -> dict[str, Any]:
    """libpq's options for a database on another machine."""
    server = {
        "tcp_keepalives_idle": _PROBE_AFTER_S,
        "tcp_keepalives_interval": _PROBE_EVERY_S,
        "tcp_keepalives_count": _PROBES,
        "tcp_user_timeout": _GIVE_UP_S * 1000,
    }
    return {
        "connect_timeout": _CONNECT_S,
        "keepalives_idle": _PROBE_AFTER_S,
        "keepalives_interval": _PROBE_EVERY_S,
        "keepalives_count": _PROBES,
        "tcp_user_timeout": _GIVE_UP_S * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
    }


def _probed_redis(url: str) -> dict[str, Any]:
    """redis-py's options for a server on another machine; a unix socket needs none."""
    if url.startswith("unix://"):
        return {}
    # Not every system has every one of them.
    wanted = {
        "TCP_KEEPIDLE": _PROBE_AFTER_S,
        "TCP_KEEPINTVL": _PROBE_EVERY_S,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": _GIVE_UP_S * 1000,
    }
    options = {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}
    return {
        "socket_connect_timeout": _CONNECT_S,
        "socket_keepalive": True,
        "socket_keepalive_options": options,
    }


def _database(url: str) -> dict[str, Any]:
    """Django's settings for a `postgresql://user:password@host:port/name?option=…` URL."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured("DATABASE_URL must begin with postgresql://")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    host = options.pop("host", unquote(parts.hostname or ""))
    if host and not host.startswith("/"):
        options = _probed_database() | options
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")) or "llamaproj",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": parts.port or "",
        # A restarted server leaves dead connections in the pool.
        "CONN_HEALTH_CHECKS": True,
        # Who asks tries anew; the pool's own tries would come ever more rarely.
        "OPTIONS": options | {"pool": {"min_size": 0, "max_size": 12, "timeout": 5, "reconnect_timeout": 5}},
    }


def _broker(url: str) -> str:
    """The same server as Celery's transport spells it: a unix socket is `redis+socket://path?virtual_host=0`."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    return f"redis+socket://{parts.path}?virtual_host={dict(parse_qsl(parts.query)).get('db', '0')}"


DATABASES = {"default": _database(env.database_url())}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
REDIS_URL = env.redis_url()
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "llamaproj",
        # A server that hangs must not hang whoever asks it.
        "OPTIONS": {"CONNECTION_POOL_KWARGS": _probed_redis(REDIS_URL) | {"socket_timeout": _GIVE_UP_S}},
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [{"address": REDIS_URL} | _probed_redis(REDIS_URL)], "prefix": "llamaproj"},
    }
}

# Background work ------------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = _broker(REDIS_URL)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# A node that was cut off for a night goes on in the morning.
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = _probed_redis(REDIS_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE_FILENAME = str(env.DATA_DIR / "run" / "beat")
CELERY_BEAT_SCHEDULE = {
    "reconcile": {"task": "models_admin.tasks.tick", "schedule": 2.0, "options": {"expires": 2}},
    "sample": {"task": "monitoring.tasks.tick", "schedule": 2.0, "options": {"expires": 2}},
    "check-external-servers": {
        "task": "models_admin.external.tasks.tick",
        "schedule": 15.0,
        "options": {"expires": 15},
    },
    "clear-sessions": {
        "task": "accounts.tasks.clear_sessions",
        "schedule": 86_400.0,
        "options": {"expires": 3600},
    },
    "clear-tokens": {
        "task": "accounts.tasks.clear_tokens",
        "schedule": 86_400.0,
        "options": {"expires": 3600},
    },
    "prune-samples": {"task": "monitoring.tasks.prune", "schedule": 600.0, "options": {"expires": 600}},
    "drain-usage": {"task": "gateway.usage.tasks.drain", "schedule": 1.0, "options": {"expires": 1}},
    "prune-usage": {"task": "gateway.usage.tasks.prune", "schedule": 3600.0, "options": {"expires": 3600}},
}

# Accounts -------------------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "accounts.backends.StaffBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "accounts.adapter.ClosedSignUp"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
MFA_ADAPTER = "accounts.second_factor.SecondFactors"
MFA_TOTP_ISSUER = "llamaproj"
# A clock may be half a minute off.
MFA_TOTP_TOLERANCE = 1
# Administrators enter addresses; the portal sends no mail to verify them.
MFA_ALLOW_UNVERIFIED_EMAIL = True
SOCIALACCOUNT_ADAPTER = "accounts.single_sign_on.SingleSignOn"
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "sso",
                "name": env.OIDC_NAME,
                "client_id": env.OIDC_CLIENT_ID,
                "secret": env.OIDC_CLIENT_SECRET,
                "settings": {"server_url": env.OIDC_SERVER_URL},
            }
        ]
        if env.OIDC_SERVER_URL
        else [],
    }
}

# Pages ----------------------------------------------------------------------------------------------------------------


def _uplot() -> Path:
    """The folder of uPlot's files inside its wheel, found without importing the wheel's own (unneeded) Python."""
    spec = importlib.util.find_spec("uplot")
    if spec is None or not spec.submodule_search_locations:
        raise ImproperlyConfigured("The package uplot-python is missing: install the locked dependencies.")
    return Path(spec.submodule_search_locations[0]) / "uplot"


# WhiteNoise reads its files synchronously; they are small, and on the disk of this machine.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

STATIC_URL = "/static/"
STATIC_ROOT = env.DATA_DIR / "static"
STATICFILES_DIRS = [_SHARED / "static", ("uplot", _uplot())]
# Collected files (an image) don't change. In a checkout they do, under a running portal: by a pull or by hand.
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = not (STATIC_ROOT.is_dir() and any(STATIC_ROOT.iterdir()))
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

UNFOLD = {
    "SITE_TITLE": "llamaproj",
    "SITE_HEADER": "llamaproj",
    "SITE_URL": "/",
    "SITE_ICON": lambda request: static("icons/mark.svg"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("icons/mark.svg")}
    ],
    "SHOW_HISTORY": True,
    # The neutrals and the accent of static/css/tokens.css, each from its palest to its deepest shade.
    "COLORS": {
        "base": {
            str(shade): f"oklch({lightness} {chroma} 186)"
            for shade, lightness, chroma in (
                (50, 0.987, 0.003),
                (100, 0.955, 0.006),
                (200, 0.905, 0.008),
                (300, 0.84, 0.01),
                (400, 0.685, 0.012),
                (500, 0.515, 0.016),
                (600, 0.415, 0.017),
                (700, 0.305, 0.012),
                (800, 0.252, 0.011),
                (900, 0.208, 0.009),
                (950, 0.178, 0.008),
            )
        },
        "primary": {
            str(shade): f"oklch({lightness} {chroma} 181)"
            for shade, lightness, chroma in (
                (50, 0.975, 0.012),
                (100, 0.945, 0.026),
                (200, 0.9, 0.05),
                (300, 0.85, 0.085),
                (400, 0.77, 0.105),
                (500, 0.62, 0.1),
                (600, 0.465, 0.083),
                (700, 0.4, 0.073),
                (800, 0.34, 0.06),
                (900, 0.28, 0.05),
                (950, 0.2, 0.035),
            )
        },
    },
}

# REST -----------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    # Keys first: who brings none and has no session is asked for one (401), not turned away (403).
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.ApiKeyAuthentication",
        "accounts.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["llamaproj.rest.Body"],
    "DEFAULT_FILTER_BACKENDS": [
        "llamaproj.rest_lists.Filters",
        "rest_framework.filters.SearchFilter",
        "llamaproj.rest_lists.Ordering",
    ],
    "DEFAULT_PAGINATION_CLASS": "llamaproj.rest_lists.Pages",
    "DEFAULT_SCHEMA_CLASS": "llamaproj.rest_schema.Schema",
    "EXCEPTION_HANDLER": "llamaproj.rest.answer",
}
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=5),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=7),
    # A key for this alone: what signs cookies signs nothing else.
    "SIGNING_KEY": hmac.new(SECRET_KEY.encode(), b"json web tokens", hashlib.sha256).hexdigest(),
    # A changed password ends the tokens that were given for the old one.
    "CHECK_REVOKE_TOKEN": True,
}
# Pages of other origins may use the REST API with keys and tokens, never with a person's session.
CORS_URLS_REGEX = r"^/api/"
CORS_ALLOW_CREDENTIALS = False
CORS_EXPOSE_HEADERS = ["retry-after", "x-request-id"]
SPECTACULAR_SETTINGS = {
    "TITLE": "llamaproj",
    "DESCRIPTION": "The portal's REST API. Programs that talk to models use the OpenAI-compatible one below /v1/.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/api/v1/",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
    "ENUM_NAME_OVERRIDES": {
        "CacheTypeEnum": "models_admin.models.LaunchParameters.CacheType",
        "InstanceStateEnum": "models_admin.states.InstanceState",
        "MessageRoleEnum": "chat.models.Message.Role",
        "MessageStatusEnum": "chat.states.MessageStatus",
        "TeamRoleEnum": "accounts.models.Membership.Role",
    },
}

# Logs -----------------------------------------------------------------------------------------------------------------

DJANGO_STRUCTLOG_CELERY_ENABLED = True
DJANGO_STRUCTLOG_CELERY_DEFAULT_LOG_LEVEL = logs.DEBUG
LOGGING_CONFIG = None
logs.configure(level=env.LOG_LEVEL, format_=env.LOG_FORMAT)
