//! State that a plugin's callers keep beside it.
//!
//! A caller may learn something that holds as long as the component is loaded, and that this module knows nothing
//! about, such as what a model server requires. A new generation of the deployment keeps the plugins that did not
//! change, so the plugin is the place that has the right lifetime.
//!
//! # Invariants
//! - There is one value of each type, and all callers share it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Values by their type.
#[derive(Default)]
pub(super) struct Extensions(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl std::fmt::Debug for Extensions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extensions").finish_non_exhaustive()
    }
}

impl Extensions {
    /// The value of this type, created if there is none yet.
    pub(super) fn get<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut all = self.0.lock();
        let value = all
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()));
        // The key is the type's own, so it always fits.
        value.clone().downcast().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_value_of_each_type() {
        let extensions = Extensions::default();
        extensions.get::<Mutex<u8>>().lock().clone_from(&7);
        assert_eq!(*extensions.get::<Mutex<u8>>().lock(), 7);
        assert_eq!(*extensions.get::<Mutex<u16>>().lock(), 0);
    }
}
