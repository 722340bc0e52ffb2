"""What administrators may do in the admin site."""

from django.contrib.auth.backends import ModelBackend

from accounts.models import User


class StaffBackend(ModelBackend):
    """Password sign-in; staff may do everything. Teams, not Django's permissions, say what members may use."""

    def has_perm(self, user_obj: User, perm: str, obj: object = None) -> bool:  # type: ignore[override]  # ours is User
        """Whether the person may do `perm`."""
        return user_obj.is_active and user_obj.is_staff

    def has_module_perms(self, user_obj: User, app_label: str) -> bool:  # type: ignore[override]  # ours is User
        """Whether the person sees the app in the admin site."""
        return user_obj.is_active and user_obj.is_staff
