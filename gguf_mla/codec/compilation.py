"""numba's compiler, for kernels made of many small functions: machine code comes from the whole, once.

numba makes machine code of every function it compiles, optimised on its own with copies of all that it calls. Here a
helper, which nobody calls from Python, remains LLVM code as it is written. A kernel takes in its helpers and theirs,
and is optimised as a whole: it compiles in half the time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class HelperLibrary(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code of one helper without those that it calls."""

    def finalize(self) -> None:
        """Let each kernel that takes the code in drop what it has no more calls of."""
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = "linkonce_odr"
        self._shared_module, self._finalized = self._final_module, True

    def _optimize_functions(self, _module: Any) -> None:
        """Leave that to the kernel."""

    def all_called(self) -> dict[Any, None]:
        """Return the libraries of all that it calls, directly or not."""
        found: dict[Any, None] = {}
        for library in self._linking_libraries:
            found[library] = None
            if isinstance(library, HelperLibrary):
                found.update(library.all_called())
        return found


class KernelLibrary(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code of a kernel with all its helpers, and its machine code."""

    def finalize(self) -> None:
        """Take in also what helpers call, then compile."""
        for library in list(self._linking_libraries):
            if isinstance(library, HelperLibrary):
                self._linking_libraries.extend(library.all_called())
        super().finalize()

    def _optimize_final_module(self) -> None:
        """Optimise twice: the second round sees what inlined helpers leave, without which IQ4_NL decodes half as fast.

        There is nothing for LLVM to vectorize, and a first round of fewer passes makes the second's work less.
        """
        for level in (1, 3):
            passes, builder = self._codegen._module_pass_manager(  # noqa: SLF001 - numba has no other way
                opt=level, loop_vectorize=False, slp_vectorize=False
            )
            passes.run(self._final_module, builder)


@register_pass(mutates_CFG=True, analysis_only=False)
class HelperLowering(NativeLowering):  # type: ignore[misc]
    """Lower a helper to a `HelperLibrary`."""

    _name = "helper_lowering"

    def run_pass(self, state: Any) -> bool:
        """Do what numba does but for machine code; its place is taken by a function that cannot be called."""
        context, name = state.targetctx, state.func_id.func_qualname
        state.library, state.flags.no_compile = HelperLibrary(context.codegen(), name), True
        super().run_pass(state)
        lowered = state.cr
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,))
        context.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=entry)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(NativeLowering):  # type: ignore[misc]
    """Lower a kernel to a `KernelLibrary`."""

    _name = "kernel_lowering"

    def run_pass(self, state: Any) -> bool:
        """Do what numba does, with another library."""
        state.library = KernelLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


def _pipeline(state: Any, lowering: type[NativeLowering]) -> Any:
    """Return numba's passes, with another lowering."""
    passes = DefaultPassBuilder.define_nopython_pipeline(state)
    passes.passes = [(lowering if step is NativeLowering else step, about) for step, about in passes.passes]
    passes.finalize()
    return passes


class HelperCompiler(CompilerBase):  # type: ignore[misc]
    """The compiler of helpers, for `kernel_cache.compiler(pipeline_class=…)`."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes a function goes through."""
        return [_pipeline(self.state, HelperLowering)]


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """The compiler of kernels, for `kernel_cache.compiler(pipeline_class=…)`."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes a function goes through."""
        return [_pipeline(self.state, KernelLowering)]
