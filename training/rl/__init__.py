from worldsim.core import torchvision_remedy  # noqa: F401 - before Lightning
