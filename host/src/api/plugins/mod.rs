//! The admin routes over the deployment's plugins: status and statistics, uploads, activation of a
//! build, and reloading.
//!
//! # Invariants
//!
//! - Only an administrator gets past the first line, and that is checked before any of the body is
//!   read.
//! - One upload is read at a time.
//! - No response contains a key.

pub(super) mod builds;
mod error;
pub(super) mod list;
mod params;
pub(super) mod reload;
pub(crate) mod shadow;
pub(crate) mod status;
pub(super) mod uploads;
mod view;

pub(crate) use self::builds::{Activate, ChangedView};
pub(crate) use self::reload::ReloadedView;
pub(crate) use self::uploads::UploadedView;
pub use self::view::{
    ActivationView, BuildView, CandidateView, GrantsView, KeptView, LastErrorView, LimitsView,
    LoadedView, LoadingView, PluginsView, ProbationView, ProblemView, RolledBackView,
    TakenBackView,
};
