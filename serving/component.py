"""How every step becomes a KFP component: `@component` over a function that imports its step and calls it."""

from functools import partial

from kfp import dsl

from serving.image import DEFAULT

component = partial(dsl.component, base_image=DEFAULT, packages_to_install=[], install_kfp_package=False)
"""Nothing is installed when a step starts: the image has all of it."""
