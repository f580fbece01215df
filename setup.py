"""Builds bertfast._cpu and bertfast._cuda with ninja: no torch, no network, no look at this machine's processor or GPU.

Variables: BERTFAST_BUILD=auto|cpu|cuda, BERTFAST_CUDA_ARCHS (else TORCH_CUDA_ARCH_LIST; as in 80;90+PTX), CUDA_HOME,
CXX, CXXFLAGS, NVCCFLAGS, LDFLAGS, MAX_JOBS; BERTFAST_WERROR=1: no warnings.
"""

import os
import sys

from setuptools import setup

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "build_tools"))

import native_modules

setup(ext_modules=native_modules.modules(), cmdclass={"build_ext": native_modules.Build})
