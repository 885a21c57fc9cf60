"""What devices can compute at most: FLOP/s are told as a share of it (MFU)."""

# Dense bf16 TFLOP/s by the vendors' data sheets, found by a part of the device's name: the first
# that fits. A V100 and a T4 have no bf16; their fp16 stands in.
_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.0,
    "MI250X": 383.0,
}


def peak_tflops(device: str) -> float | None:
    """Return the dense TFLOP/s of a device by its name, None for one that is not known."""
    return next((peak for part, peak in _TFLOPS.items() if part in device), None)
