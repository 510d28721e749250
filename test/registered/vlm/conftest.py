collect_ignore = ["test_vision_openai_server_common.py"]  # names to import, no tests
