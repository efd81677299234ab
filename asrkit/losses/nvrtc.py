"""CUDA C++ compiled at run time by NVRTC, which torch's CUDA wheels bring, and launched through the driver.

Both are spoken to by their C interfaces, which are stable, where torch's own way of doing this is private and changes.
"""

from __future__ import annotations

import ctypes
import os
import site
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

CAPTURE_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: loading a module allocates memory, which a capture in this thread would else forbid."""


OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""


class CudaUnavailableError(Exception):
    """NVRTC or the driver is missing, or refuses."""


def compile_source(source: str, name: str, options: Iterable[str], capability: tuple[int, int]) -> bytes:
    """Return machine code for a GPU.

    Args:
        source: CUDA C++ that includes nothing.
        name: the file's name, for messages.
        options: the compiler's, such as definitions.
        capability: of the GPU to compile for.

    Raises:
        CudaUnavailableError: without NVRTC, or where the source does not compile.
    """
    library = nvrtc()
    program = ctypes.c_void_p()
    _nvrtc_check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        arguments = [f"--gpu-architecture=sm_{_architecture(capability)}", "--std=c++17", *options]
        encoded = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
        status = library.nvrtcCompileProgram(program, len(arguments), encoded)
        size = ctypes.c_size_t()
        if status:
            _nvrtc_check(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _nvrtc_check(library.nvrtcGetProgramLog(program, log))
            said = log.value.decode(errors="replace").strip()
            raise CudaUnavailableError(
                f"{name} does not compile for capability {capability}: {said or _status(status)}"
            )
        _nvrtc_check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _nvrtc_check(library.nvrtcGetCUBIN(program, code))
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _architecture(capability: tuple[int, int]) -> int:
    """Return the GPU's architecture, or, where NVRTC is older than it, its generation's first, whose machine code it runs too."""
    library, count = nvrtc(), ctypes.c_int()
    _nvrtc_check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _nvrtc_check(library.nvrtcGetSupportedArchs(known))
    major, minor = capability
    own, first = 10 * major + minor, 10 * major
    return first if own not in known and first in known else own


class Module:
    """Compiled kernels on one device."""

    def __init__(self, code: bytes, names: Iterable[str], device: int) -> None:
        """Load machine code.

        Args:
            code: of `compile_source`.
            names: the kernels, declared extern "C".
            device: index among torch's devices.

        Raises:
            CudaUnavailableError: the driver refuses.
        """
        self.device = device
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._handle = ctypes.c_void_p()
        with _context(device), _loading():
            _check(driver().cuModuleLoadData(ctypes.byref(self._handle), code))
            for name in names:
                self._functions[name] = ctypes.c_void_p()
                _check(driver().cuModuleGetFunction(ctypes.byref(self._functions[name]), self._handle, name.encode()))

    def launch(self, name: str, blocks: int, threads: int, argument: ctypes.Structure) -> None:
        """Queue a kernel on torch's current stream of the device.

        Args:
            name: the kernel's.
            blocks: the grid's size, one-dimensional.
            threads: to a block.
            argument: the kernel's only one, by value.

        Raises:
            CudaUnavailableError: the driver refuses.
            torch.OutOfMemoryError: it has no memory for the kernel.
        """
        stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        what = self._functions[name], blocks, 1, 1, threads, 1, 1, 0, stream, pointers, None
        with _context(self.device):
            status = driver().cuLaunchKernel(*what)
            if status == OUT_OF_MEMORY and not torch.cuda.is_current_stream_capturing():
                # Kernels for long targets have local memory, which the driver finds beside what torch keeps.
                torch.cuda.empty_cache()
                status = driver().cuLaunchKernel(*what)
            _check(status)


@cache
def driver() -> ctypes.CDLL:
    """Return the CUDA driver's library; raises CudaUnavailableError without one."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise CudaUnavailableError(f"no CUDA driver: {error}") from None


@cache
def nvrtc() -> ctypes.CDLL:
    """Return NVRTC's library of torch's CUDA version; raises CudaUnavailableError without one."""
    version = torch.version.cuda
    if version is None:
        raise CudaUnavailableError("this torch is built without CUDA")
    major = version.split(".")[0]
    for folder in _library_folders(major):
        # What NVRTC opens at run time is not always on its own search path; once loaded, it is found by name.
        for path in sorted(folder.glob(f"*nvrtc-builtins*{major}*")):
            _open(str(path))
        for path in sorted((*folder.glob(f"libnvrtc*.so.{major}*"), *folder.glob(f"nvrtc64_{major}*.dll"))):
            if "builtins" not in path.name and ".alt." not in path.name and (library := _open(str(path))) is not None:
                return library
    for name in (f"libnvrtc.so.{major}", "libnvrtc.so", f"nvrtc64_{major}0_0.dll"):
        if (library := _open(name)) is not None:
            return library
    raise CudaUnavailableError(
        f"no NVRTC for CUDA {version}: pip install nvidia-cuda-nvrtc, in the version torch asks for"
    )


def _library_folders(major: str) -> Iterator[Path]:
    """Where wheels, conda and a toolkit put NVRTC, torch's own neighbours first."""
    packages = [Path(torch.__file__).parents[1], *map(Path, (*site.getsitepackages(), site.getusersitepackages()))]
    for root in packages:
        yield from (root / "nvidia" / "cuda_nvrtc" / part for part in ("lib", "bin"))
        yield from (root / "nvidia" / f"cu{major}" / part for part in ("lib", "bin", "bin/x86_64"))
    yield Path(torch.__file__).parent / "lib"
    yield Path(sys.prefix) / "lib"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            yield from (Path(os.environ[variable]) / part for part in ("lib64", "lib", "bin"))
    yield Path("/usr/local/cuda/lib64")


def _open(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@contextmanager
def _context(device: int) -> Iterator[None]:
    """The device, and its context in this thread: torch's threads for gradients may not have one yet."""
    with torch.cuda.device(device):
        current = ctypes.c_void_p()
        _check(driver().cuCtxGetCurrent(ctypes.byref(current)))
        if not current:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            _check(driver().cuDeviceGet(ctypes.byref(handle), torch.cuda.current_device()))
            _check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
            _check(driver().cuCtxSetCurrent(context))
        yield


@contextmanager
def _loading() -> Iterator[None]:
    mode = ctypes.c_int(CAPTURE_RELAXED)
    _check(driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)))
    try:
        yield
    finally:
        _check(driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)))


def _check(status: int) -> None:
    if status == OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("CUDA out of memory: none left for a kernel of the CTC loss")
    if status:
        said = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(said))
        raise CudaUnavailableError(f"CUDA driver: {(said.value or b'unknown error').decode()} ({status})")


def _nvrtc_check(status: int) -> None:
    if status:
        raise CudaUnavailableError(f"NVRTC: {_status(status)}")


def _status(status: int) -> str:
    said = nvrtc().nvrtcGetErrorString
    said.restype = ctypes.c_char_p
    return f"{said(status).decode()} ({status})"
