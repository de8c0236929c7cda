//! Components that are part of this program, with their code.

use crate::code::CompiledCode;

/// A component, and the code that the build of this program compiled from it.
#[derive(Debug)]
pub struct EmbeddedComponent {
    component: &'static [u8],
    code: CompiledCode,
}

impl EmbeddedComponent {
    /// Pairs a component with its code.
    ///
    /// # Safety
    ///
    /// `code` is empty, or what [`CompiledCode::compile_for`] made of `component` and
    /// [wrote](CompiledCode::write) while this program was built.
    #[expect(
        unsafe_code,
        reason = "a promise that bytes are the compiler's; see the crate's first comment"
    )]
    pub const unsafe fn new(component: &'static [u8], code: &'static [u8]) -> Self {
        Self {
            component,
            code: CompiledCode::embedded(code),
        }
    }

    /// The code of a component, if it is one of these and was compiled.
    pub fn find<'a>(all: &'a [Self], component: &[u8]) -> Option<&'a CompiledCode> {
        let found = all.iter().find(|one| one.component == component)?;
        let code = &found.code;
        (!code.bytes().is_empty()).then_some(code)
    }
}
