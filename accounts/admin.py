"""People, teams, keys and the audit trail in the admin site."""

from http import HTTPStatus
from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin, TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts import audit, key_actions, second_factor, version
from accounts.access import person
from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from accounts.people import actions as people_actions
from accounts.refusing import Refusing
from accounts.single_sign_on import vouch_for_address
from accounts.teams import actions as team_actions

# Teams say who may use what; Django's own groups aren't used.
admin.site.unregister(Group)


@admin.register(User)
class PortalUserAdmin(Refusing, UserAdmin, ModelAdmin):  # type: ignore[type-arg]  # Django's class takes none at run time
    """People who may sign in."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    filter_horizontal = ()
    list_filter = ("is_active", "is_staff")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Permissions", {"fields": ("is_active", "is_staff")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )

    actions = ("reset_second_factor",)

    def save_model(self, request: HttpRequest, obj: User, form: "ModelForm[User]", change: bool) -> None:
        """Add or change, through the same verbs as REST; an address that an administrator enters counts as proved."""
        by = person(request)
        if change:
            fields = {name: form.cleaned_data[name] for name in form.changed_data}
            people_actions.change(User.objects.get(pk=obj.pk), by=by, **fields)
        else:
            super().save_model(request, obj, form, change)
            version.renew()
            audit.record(by, "user.create", obj, staff=obj.is_staff)
        if "email" in form.changed_data:
            vouch_for_address(obj)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002
        """Also an entry of the audit trail."""
        response = super().user_change_password(request, id, form_url)
        if request.method == "POST" and response.status_code == HTTPStatus.FOUND:
            audit.record(person(request), "user.password", User.objects.get(pk=id))
        return response

    @admin.action(description="Reset the second factor")
    def reset_second_factor(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """For those who lost phone and recovery codes."""
        for user in queryset:
            second_factor.reset(user, by=person(request))
        self.message_user(request, "Reset: they sign in with the password alone until they set it up again.")

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        """Remove a person."""
        people_actions.remove(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Remove all of them, or nobody."""
        for user in queryset:
            people_actions.remove(user, by=person(request))


class MembershipInline(TabularInline):
    """Who is in a team."""

    model = Membership
    autocomplete_fields = ("user",)
    extra = 0


@admin.register(Team)
class TeamAdmin(Refusing, ModelAdmin):
    """Teams and their members, through the same verbs as the teams' pages."""

    list_display = ("name", "weight", "created_at")
    search_fields = ("name",)
    inlines = (MembershipInline,)

    def save_model(self, request: HttpRequest, obj: Team, form: "ModelForm[Team]", change: bool) -> None:
        """Make or change it."""
        by, said = person(request), form.cleaned_data
        if change:
            team_actions.change(Team.objects.get(pk=obj.pk), by=by, name=said["name"], weight=said["weight"])
        else:
            obj.pk = team_actions.create(name=said["name"], weight=said["weight"], by=by).pk
            obj._state.adding = False

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Add, change and remove members."""
        by = person(request)
        for member in formset.save(commit=False):
            if member.pk is None:
                team_actions.add(form.instance, member.user, role=member.role, by=by)
            else:
                team_actions.set_role(Membership.objects.get(pk=member.pk), member.role, by=by)
        for member in formset.deleted_objects:
            team_actions.remove(member, by=by)

    def delete_model(self, request: HttpRequest, obj: Team) -> None:
        """End it."""
        team_actions.delete(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Team]) -> None:
        """End those chosen."""
        for team in queryset:
            team_actions.delete(team, by=person(request))


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):
    """Keys, as far as they can be shown; made by those whose they are, revoked here."""

    list_display = (
        "name", "user", "team", "prefix", "scopes", "priority", "created_at", "last_used_at", "expires_at",
        "revoked_at",
    )  # fmt: skip
    list_filter = ("revoked_at",)
    search_fields = ("name", "user__username", "prefix")
    actions = ("revoke",)

    @admin.action(description="Revoke the chosen keys")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Make keys worthless from now on."""
        for key in queryset.select_related("user"):
            key_actions.revoke_api_key(key, by=person(request))
        self.message_user(request, "Revoked.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A key is shown once, when it is made; this site has no place for that."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Looking and revoking only."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Usage and audit trail refer to it."""
        return False


@admin.register(AuditEntry)
class AuditEntryAdmin(ModelAdmin):
    """The audit trail, to read."""

    list_display = ("at", "by_name", "verb", "target")
    list_filter = ("verb",)
    search_fields = ("by_name", "target")
    date_hierarchy = "at"

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Written by deeds only."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        """Never changed."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AuditEntry | None = None) -> bool:
        """Never removed."""
        return False
