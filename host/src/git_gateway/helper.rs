//! Owns the talk with one git helper in the box.
//!
//! What always holds: the helper is hostile until it gave the session's key, and gets the session's
//! repository only; what it sends and what it is sent is bounded in size and in time.

use std::time::Duration;

use futures::StreamExt;
use lucid_exec::protocol::{Frame, GitOpen, Kind, VERSION};
use subtle::ConstantTimeEq;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::remote::{Remote, advertise, broken, upload_pack};
use super::url::plain;
use crate::sandbox::read_frame;

/// The most a helper may send for one request.
const MAX_REQUEST: usize = 16 << 20;
/// The most one answer may be before it is cut off.
const MAX_ANSWER: u64 = 4 << 30;
/// How long a helper may be silent.
const IDLE: Duration = Duration::from_secs(600);

/// Serves one helper. An error is a sentence for git's user.
pub(super) async fn serve(connection: &mut UnixStream, remote: &Remote) -> Result<(), String> {
    let open = match tokio::time::timeout(Duration::from_secs(10), read_frame(connection)).await {
        Ok(Ok(Frame {
            kind: Kind::GitOpen,
            payload,
            ..
        })) => serde_json::from_slice::<GitOpen>(&payload).ok(),
        _ => None,
    };
    let open = open.ok_or("the git helper did not say what it wants")?;
    if open.version != VERSION {
        return Err("the git helper speaks another version than the host".to_owned());
    }
    if !bool::from(open.key.as_bytes().ct_eq(remote.key.as_bytes())) {
        return Err("the git helper does not belong to this session".to_owned());
    }
    if plain(&open.url) != plain(&remote.url) {
        return Err(format!(
            "this session may reach {} and no other repository",
            remote.url
        ));
    }
    let (url, advertisement) = advertise(remote).await?;
    for frame in Frame::split(Kind::GitData, 0, &advertisement) {
        send(connection, &frame).await?;
    }
    send(connection, &Frame::new(Kind::GitEnd, 0, Vec::new())).await?;
    while let Some(request) = read_request(connection).await? {
        let answer = upload_pack(remote, &url, request).await?;
        let mut body = answer.bytes_stream();
        let mut received = 0;
        while let Some(part) = body.next().await {
            let part = part.map_err(broken)?;
            received += part.len() as u64;
            if received > MAX_ANSWER {
                return Err(format!(
                    "the repository is larger than the {MAX_ANSWER} bytes a session may fetch"
                ));
            }
            for frame in Frame::split(Kind::GitData, 0, &part) {
                send(connection, &frame).await?;
            }
        }
        send(connection, &Frame::new(Kind::GitEnd, 0, Vec::new())).await?;
    }
    Ok(())
}

async fn send(connection: &mut UnixStream, frame: &Frame) -> Result<(), String> {
    let written = tokio::time::timeout(IDLE, connection.write_all(&frame.encode())).await;
    written
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| "the git helper went away".to_owned())
}

/// One request of a helper; none when it is done.
async fn read_request(connection: &mut UnixStream) -> Result<Option<Vec<u8>>, String> {
    let mut request = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, read_frame(connection)).await {
            Ok(Ok(Frame {
                kind: Kind::GitBody,
                payload,
                ..
            })) if request.len() + payload.len() <= MAX_REQUEST => {
                request.extend(payload);
            }
            Ok(Ok(Frame {
                kind: Kind::GitPost,
                ..
            })) => return Ok(Some(request)),
            Ok(Err(_)) if request.is_empty() => return Ok(None),
            Ok(_) => {
                return Err("the git helper's request is too large or cannot be read".to_owned());
            }
            Err(_) => return Err("the git helper was silent for too long".to_owned()),
        }
    }
}
