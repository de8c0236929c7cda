//! Logs why a plugin panicked, before it traps: the trap itself gives the host no more than the
//! name of a function.

#[cfg(target_arch = "wasm32")]
use std::sync::Once;

/// The maximum length of a logged message, in bytes.
#[cfg(target_arch = "wasm32")]
const LONGEST: usize = 2_000;

/// Enables logging of panics. Each exported function begins with it. Only the first call has an
/// effect, and natively none has.
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
