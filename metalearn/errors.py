"""Every failure that `metalearn` names: what was expected, what came, what to do."""


class MetalearnError(Exception):
    """Base of all errors raised by `metalearn` on purpose."""


class LatentError(MetalearnError, ValueError):
    """The latent is not a pytree of floating-point tensors that share their first (task) axis."""


class SupportLossShapeError(MetalearnError, ValueError):
    """The support loss did not return one loss per task, shape ``(B,)``."""


class DisconnectedLossError(MetalearnError, RuntimeError):
    """The support loss does not depend on the latent it was given."""


class NonFiniteLossError(MetalearnError, FloatingPointError):
    """A support loss is infinite or not a number; the message names the step and the tasks."""


class SecondDerivativeError(MetalearnError, RuntimeError):
    """The support loss runs through an operation that has no second derivative."""


class ConvergenceWarning(UserWarning):
    """A solver stopped further from its solution than was asked for; the message says how far."""


class ChangedLossError(MetalearnError, RuntimeError):
    """The support loss that a backward pass evaluates again is not the one of the forward pass."""


class PrecisionError(MetalearnError, ValueError):
    """Something is computed in too few digits for what a policy does with it."""


class CurvatureError(MetalearnError, ValueError):
    """The support loss has no curvature, so it has no optimum to differentiate."""


class CurvatureWarning(UserWarning):
    """The support loss curves the wrong way at a point that is taken for its optimum."""


class SettingError(MetalearnError, ValueError):
    """A setting that would not do what it seems to say."""


class MissingBettyError(MetalearnError, ImportError):
    """Betty is needed and not installed, or installed in a version that does not work."""


class MultilevelError(MetalearnError, ValueError):
    """A multilevel problem is put together in a way that has no meaning or does not work."""


class ModuleError(MetalearnError, ValueError):
    """A module that cannot be a pure function of the parameters that were asked for."""
