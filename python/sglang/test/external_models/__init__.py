"""A model that sees as somebody outside the project would bring it: a class and its processor in one package.

SGLANG_EXTERNAL_MODEL_PACKAGE=sglang.test.external_models
SGLANG_EXTERNAL_MM_MODEL_ARCH=Qwen2VLForConditionalGeneration
SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE=sglang.test.external_models
"""
