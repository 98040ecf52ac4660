"""Who may see the console: Airflow's own sign-in and permissions, as FastAPI dependencies for create_app().

Airflow mounts plugin apps without any authentication, so every data route of the console depends on require_user.
Role names are never tested: they exist in one auth manager only; questions to the auth manager hold in all.
"""

from typing import Annotated
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

SENDING_DAG = "push_campaign"
MOUNT = "/nightmarket"  # the url_prefix of plugin.py
_bearer = HTTPBearer(auto_error=False)


async def signed_in(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
) -> BaseUser:
    """The signed-in user; anonymous browsers are sent to the sign-in page and come back, other callers get 401."""
    try:
        user = await get_user(request, None, bearer)
    except HTTPException as error:
        if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
            target = quote(str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""), safe="")
            prefix = request.scope.get("root_path", "").removesuffix(MOUNT)  # of an Airflow that does not live at /
            raise HTTPException(303, headers={"Location": f"{prefix}/auth/login/?next={target}"}) from None
        raise
    if not get_auth_manager().is_authorized_view(access_view=AccessView.WEBSITE, user=user):
        raise HTTPException(403, "You are signed in but may not read this site.")
    return user


async def require_user(user: Annotated[BaseUser, Depends(signed_in)]) -> str:
    """The name of the signed-in user. Raises 401, 403 or a redirect to the sign-in page (303)."""
    return user.get_name()


async def may_send(user: Annotated[BaseUser, Depends(signed_in)]) -> bool:
    """Whether this user may start campaigns: the right to trigger the sending DAG."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=SENDING_DAG), user=user
    )
