//! The deployment's errors as problems for an administrator.

use axum::http::StatusCode;

use crate::api::problem::Problem;
use crate::deployment::manager::{BuildChangeError, UploadError};
use crate::deployment::uploads::UploadStoreError;
use lucid_types::sentence::sentence;

impl From<BuildChangeError> for Problem {
    fn from(error: BuildChangeError) -> Self {
        let detail = error.sentence();
        match &error {
            BuildChangeError::NoSuchPlugin { .. }
            | BuildChangeError::UnknownPlugin { .. }
            | BuildChangeError::NotNew { .. }
            | BuildChangeError::NotUploaded(_) => Self::not_found(detail),
            BuildChangeError::NoName
            | BuildChangeError::NoShare
            | BuildChangeError::WrongShare
            | BuildChangeError::Refused(_) => Self::unprocessable(detail),
            BuildChangeError::NothingActive { .. }
            | BuildChangeError::NoSecondBuild(_)
            | BuildChangeError::IsActive(_) => Self::conflict(detail),
            BuildChangeError::Interrupted => Self::unavailable(detail),
            BuildChangeError::UploadStore(cause) => upload_store_error(cause, detail),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let detail = sentence(&error);
        match &error {
            UploadError::NotAdmitted(_) => Self::unprocessable(detail),
            UploadError::UploadStore(cause) => upload_store_error(cause, detail),
            UploadError::Interrupted => Self::unavailable(detail),
        }
    }
}

/// An administrator may know which file is concerned.
fn upload_store_error(cause: &UploadStoreError, detail: String) -> Problem {
    tracing::error!(%cause, "the store of uploaded plugins failed");
    let full = cause.is_disk_full() || matches!(cause, UploadStoreError::Full { .. });
    let status = if full {
        StatusCode::INSUFFICIENT_STORAGE
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Problem::new(status, detail)
}
