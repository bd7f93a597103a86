"""What the extra [export] brings, asked for before there is any work."""

from importlib import import_module

from scdd.errors import UserError


def require_onnx() -> None:
    """Say what is missing.

    Raises:
        UserError: if a library of the extra is not installed.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"{name} is not installed; pip install 'scdd[export]'") from error
