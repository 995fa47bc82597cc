"""The connector's file, `sam2_reducer_and_vlm_layer.pth` = {"sam2_reducer": {...}, "sam2vlm_layer": {...}}."""

from converters.rules import Rule, conv, linear

FILE_NAME = "sam2_reducer_and_vlm_layer.pth"

# Outer and inner key joined by a dot, see `TorchFile`.
RULES = [
    Rule("sam2_reducer", "connector.reduce", conv),
    Rule("sam2vlm_layer.0", "connector.fc1", linear),
    Rule("sam2vlm_layer.2", "connector.fc2", linear),
]
