"""Budget, noise and the mechanisms that use it."""
