"""URLs of conversations, below /api/v1/."""

from rest_framework.routers import SimpleRouter

from chat import api
from chat.prompts.api import PromptViewSet

router = SimpleRouter(use_regex_path=False)
router.register("conversations", api.ConversationViewSet, basename="api-conversation")
router.register("generations", api.GenerationViewSet, basename="api-generation")
router.register("prompts", PromptViewSet, basename="api-prompt")

urlpatterns = router.urls
