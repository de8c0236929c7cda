//! Logs why a plugin panicked, before it traps: the trap itself gives the host no more than the
//! name of a function.

#[cfg(target_arch = "wasm32")]
use std::sync::Once;

/// The most bytes of a message that are told.
#[cfg(target_arch = "wasm32")]
const LONGEST: usize = 2_000;

/// Has panics told from here on. Each exported function begins with it; only the first one does
/// anything, and natively none.
pub(crate) fn tell() {
    #[cfg(target_arch = "wasm32")]
    {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            std::panic::set_hook(Box::new(|panic| {
                let message = panic.payload_as_str().unwrap_or("without a message");
                let message = &message[..message.floor_char_boundary(LONGEST)];
                let place = panic.location();
                let place = place.map_or_else(String::new, |place| format!(" at {place}"));
                crate::log(crate::Level::Error, &format!("panicked{place}: {message}"));
            }));
        });
    }
}
