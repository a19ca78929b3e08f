"""Models of other tools' packages, which stay optional.

``akida.py`` and ``sinabs.py`` take whole numbers. They first look for what the tool has
no form for (``refusals.py``), and import its package only then. ``onnx.py`` takes any
function of JAX.
"""
