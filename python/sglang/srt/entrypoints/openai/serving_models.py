"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from sglang.srt.entrypoints.http.streaming import JSONResponse
from sglang.srt.entrypoints.openai.protocol import ModelCard, ModelList
from sglang.srt.entrypoints.openai.serving_base import ServingSettings


class ModelServing:
    """Lists the one model that is served."""

    def __init__(self, settings: ServingSettings) -> None:
        self._card = ModelCard(
            id=settings.served_model_name,
            created=settings.created,
            root=settings.served_model_name,
            max_model_len=settings.context_len,
        )

    def list_models(self) -> JSONResponse:
        return JSONResponse(ModelList(data=[self._card]))

    def get_model(self, model_id: str) -> JSONResponse:
        if model_id == self._card.id:
            return JSONResponse(self._card)
        error = {
            "message": f"the model {model_id[:200]!r} does not exist; served: {self._card.id!r}",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return JSONResponse({"error": error}, 404)
