//! The code that a compiler made of a component, before it is loaded.

use std::borrow::Cow;
use std::io;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::settings;

/// What this program's compiler made of a component: native code, as wasmtime serialises it.
///
/// There are three ways to have one: [compiling](Self::compile) here, what a
/// [process](crate::CompilerProcess) of this program gave back, and what this program's build
/// [embedded](crate::EmbeddedComponent). All are the compiler's own output, and
/// running it trusts that compiler to be right: hostile input that makes it write wrong code wins the
/// same in each. The process keeps apart what a compiler *uses*, not what it writes.
pub struct CompiledCode(Cow<'static, [u8]>);

impl std::fmt::Debug for CompiledCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompiledCode({} bytes)", self.0.len())
    }
}

impl CompiledCode {
    /// Compiles a component in this process.
    ///
    /// # Errors
    ///
    /// An error is the component's own.
    pub fn compile(engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Self> {
        let code = engine.precompile_component(wasm)?;
        Ok(Self(code.into()))
    }

    /// Compiles a component for a target, with the [settings](crate::settings()) of a server. The code uses
    /// what every processor of that target has.
    ///
    /// # Errors
    ///
    /// An error is the component's own, or the target is not one that this program compiles for.
    pub fn compile_for(target: &str, wasm: &[u8]) -> wasmtime::Result<Self> {
        let engine = Engine::new(settings().target(target)?)?;
        Self::compile(&engine, wasm)
    }

    /// Writes it where a [process](crate::CompilerProcess) hands it over.
    pub fn write(&self, mut output: impl io::Write) -> io::Result<()> {
        output.write_all(&self.0)?;
        output.flush()
    }

    /// Takes what a compiler wrote. Only for what is known to be that: see [`Self::load`].
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// Takes what a compiler wrote while this program was built. Only for what is known to be that: see
    /// [`Self::load`].
    pub(crate) const fn embedded(bytes: &'static [u8]) -> Self {
        Self(Cow::Borrowed(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Loads it. wasmtime compares the version, the target, the settings and the processor's features in
    /// its header with the engine's.
    ///
    /// # Errors
    ///
    /// It was compiled for another engine, or needs more than the engine's pool has.
    #[expect(
        unsafe_code,
        reason = "loading native code; see the crate's first comment"
    )]
    pub fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: a value of this type holds what wasmtime's compiler serialised in this program: in
        // this process, in a process of the same program whose output nobody else could write, in
        // one that put it into the cache folder, from which it came back unchanged, or in the build of
        // this program (who embeds it promises that). Nothing else makes one, and nobody can change it.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}
