//! The connection with one git helper in the sandbox.
//!
//! # Invariants
//! - The helper counts as hostile until it presents the session's key, and reaches only
//!   repositories that the session may have.
//! - No byte of a push reaches the server before every change it asks for was read and allowed;
//!   then every byte is forwarded unchanged.
//! - Traffic in both directions is bounded in size and in time.
//! - When the helper disconnects, its request to the server ends.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Body, Response};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::error::{HelperError, PushError, UpstreamError};
use super::receive_pack::PushCommands;
use super::upstream::{UpstreamRemote, next_part};
use super::url::{permitted, plain, sibling_repository};
use crate::connection::read_frame;
use lucid_exec::protocol::{Frame, FrameKind, GitOpen, GitService, VERSION};

/// How much of a request is buffered before it is sent, in bytes; only a push may be larger.
const MAX_BUFFERED: usize = 16 << 20;
/// A push up to this size in bytes is sent with its length: so does git, and some servers accept a
/// small one in no other way.
const SMALL_PUSH: usize = 1 << 20;
/// How much of a server's response to a push is inspected, in bytes.
const MAX_REPORT: usize = 64 << 10;
/// How long a helper may be silent.
const IDLE: Duration = Duration::from_secs(600);

/// Serves one helper.
pub(super) async fn serve(
    connection: &mut UnixStream,
    remote: &UpstreamRemote,
) -> Result<(), HelperError> {
    let (mut reader, writer) = connection.split();
    let open = match tokio::time::timeout(Duration::from_secs(10), read_frame(&mut reader)).await {
        Ok(Ok(Frame {
            kind: FrameKind::GitOpen,
            payload,
            ..
        })) => serde_json::from_slice::<GitOpen>(&payload).ok(),
        _ => None,
    };
    let open = open.ok_or(HelperError::Hello)?;
    if open.version != VERSION {
        return Err(HelperError::Version);
    }
    if !bool::from(open.key.as_bytes().ct_eq(remote.key.as_bytes())) {
        return Err(HelperError::Key);
    }
    let url = permitted(&remote.url, &open.url, remote.rules.allow_owner).ok_or_else(|| {
        HelperError::Repository {
            own: remote.url.clone(),
            allow_owner: remote.rules.allow_owner,
            neighbour: sibling_repository(&remote.url, &open.url),
        }
    })?;
    let mut helper = HelperConnection {
        reader,
        writer,
        remote,
    };
    let start = remote.advertise(&url, open.service).await?;
    helper.send(&start.bytes).await?;
    helper.end().await?;
    match open.service {
        GitService::Fetch => helper.fetch(&start.url).await,
        GitService::Push => {
            let own = plain(&url) == plain(&remote.url);
            helper.push(&start.url, own).await
        }
    }
}

/// A message from the helper.
enum HelperMessage {
    /// A part of a request.
    Part(Vec<u8>),
    /// The request is complete.
    Whole,
    /// The helper closed the connection.
    Nothing,
}

struct HelperConnection<'a> {
    reader: ReadHalf<'a>,
    writer: WriteHalf<'a>,
    remote: &'a UpstreamRemote,
}

impl HelperConnection<'_> {
    async fn fetch(&mut self, url: &str) -> Result<(), HelperError> {
        loop {
            let mut request = Vec::new();
            loop {
                match next_message(&mut self.reader).await? {
                    HelperMessage::Part(part) if request.len() + part.len() <= MAX_BUFFERED => {
                        request.extend(part);
                    }
                    HelperMessage::Part(_) => return Err(HelperError::LargeRequest),
                    HelperMessage::Whole => break,
                    HelperMessage::Nothing => return Ok(()),
                }
            }
            let longest = self.remote.rules.longest;
            let answered = async {
                let answer = tokio::select! {
                    answer = self.remote.post(url, GitService::Fetch, request.into()) => answer?,
                    () = disconnected(&mut self.reader) => return Err(HelperError::Gone),
                };
                self.forward_response(answer, None).await
            };
            tokio::time::timeout(longest, answered)
                .await
                .unwrap_or_else(|_| Err(UpstreamError::Slow { limit: longest }.into()))?;
        }
    }

    /// `own` says whether this is the session's own repository.
    async fn push(&mut self, url: &str, own: bool) -> Result<(), HelperError> {
        let mut first = Vec::new();
        let mut commands = PushCommands::default();
        let mut known = false;
        let small = loop {
            match next_message(&mut self.reader).await? {
                HelperMessage::Part(part) => first.extend(part),
                HelperMessage::Whole if known => break true,
                HelperMessage::Whole => return Err(HelperError::ShortPush),
                HelperMessage::Nothing if first.is_empty() => return Ok(()),
                HelperMessage::Nothing => return Err(HelperError::Gone),
            }
            if !known && commands.read(&first)? {
                known = true;
                if let Some(refusal) = commands.refusal(&self.remote.rules.branches) {
                    return self.refuse(&commands, refusal, first.len()).await;
                }
            }
            // Until the command list is complete, it may be larger than a small push.
            if known && first.len() > SMALL_PUSH {
                break false;
            }
        };
        let longest = self.remote.rules.longest;
        let pushed = async {
            let answer = if small {
                tokio::select! {
                    answer = self.remote.post(url, GitService::Push, first.into()) => answer?,
                    () = disconnected(&mut self.reader) => return Err(HelperError::Gone),
                }
            } else {
                self.stream_push(url, first).await?
            };
            self.forward_response(answer, own.then_some(&commands))
                .await
        };
        tokio::time::timeout(longest, pushed)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::Slow { limit: longest }.into()))
    }

    /// Reports to git, in the server's place, that nothing was changed, and why.
    async fn refuse(
        &mut self,
        commands: &PushCommands,
        refusal: PushError,
        came: usize,
    ) -> Result<(), HelperError> {
        let Some(report) = commands.report(&self.remote.rules.branches, &refusal) else {
            return Err(refusal.into());
        };
        // The helper listens only after sending the pack.
        let (most, longest) = (self.remote.rules.largest, self.remote.rules.longest);
        let rest = async {
            let mut came = came as u64;
            loop {
                match next_message(&mut self.reader).await? {
                    HelperMessage::Part(part) => came += part.len() as u64,
                    HelperMessage::Whole => return Ok(()),
                    HelperMessage::Nothing => return Err(HelperError::Gone),
                }
                if came > most {
                    return Err(refusal.clone().into());
                }
            }
        };
        tokio::time::timeout(longest, rest)
            .await
            .unwrap_or_else(|_| Err(refusal.clone().into()))?;
        self.send(&report).await?;
        self.end().await
    }

    /// Forwards a push while the helper still sends it.
    async fn stream_push(&mut self, url: &str, first: Vec<u8>) -> Result<Response, HelperError> {
        let most = self.remote.rules.largest;
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
        let parts = futures::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|part| (part, receiver))
        });
        let answer = self
            .remote
            .post(url, GitService::Push, Body::wrap_stream(parts));
        let reader = &mut self.reader;
        let upload = async move {
            let mut sent = first.len() as u64;
            // Fails if the server has responded already. The rest is read nevertheless, since the
            // helper reads the response only after sending it.
            let _ = sender.send(Ok(first.into())).await;
            let failed = loop {
                match next_message(reader).await {
                    Ok(HelperMessage::Part(part)) => {
                        sent += part.len() as u64;
                        if sent > most {
                            break HelperError::LargePush { most };
                        }
                        let _ = sender.send(Ok(part.into())).await;
                    }
                    Ok(HelperMessage::Whole) => return Ok(()),
                    Ok(HelperMessage::Nothing) => break HelperError::Gone,
                    Err(error) => break error,
                }
            };
            // A request that simply ended here would look complete to the server.
            let _ = sender.send(Err(io::ErrorKind::BrokenPipe.into())).await;
            Err(failed)
        };
        tokio::pin!(answer, upload);
        tokio::select! {
            // A failed request ends at once; after a response the rest is still read.
            early = &mut answer => {
                let early = early?;
                upload.await?;
                Ok(early)
            }
            uploaded = &mut upload => {
                uploaded?;
                Ok(answer.await?)
            }
        }
    }

    /// Forwards a response to the helper. If it is to a push of the session's own repository, the
    /// accepted branch is noted before the helper learns of it.
    async fn forward_response(
        &mut self,
        answer: Response,
        push: Option<&PushCommands>,
    ) -> Result<(), HelperError> {
        let mut report = Vec::new();
        let most = self.remote.rules.largest;
        let mut body = answer.bytes_stream();
        let mut received = 0;
        loop {
            let part = tokio::select! {
                part = next_part(&mut body) => part?,
                () = disconnected(&mut self.reader) => return Err(HelperError::Gone),
            };
            let Some(part) = part else {
                return self.end().await;
            };
            received += part.len() as u64;
            if received > most {
                return Err(HelperError::LargeResponse { most });
            }
            if let Some(commands) = push
                && report.len() < MAX_REPORT
            {
                report.extend_from_slice(&part);
                if let Some(branch) = commands.accepted_branch(&report) {
                    self.remote.record_push(branch);
                }
            }
            self.send(&part).await?;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), HelperError> {
        for frame in Frame::split(FrameKind::GitData, 0, bytes) {
            self.write(&frame).await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), HelperError> {
        self.write(&Frame::new(FrameKind::GitEnd, 0, Vec::new()))
            .await
    }

    async fn write(&mut self, frame: &Frame) -> Result<(), HelperError> {
        let written = tokio::time::timeout(IDLE, self.writer.write_all(&frame.encode())).await;
        written.ok().and_then(Result::ok).ok_or(HelperError::Gone)
    }
}

async fn next_message(reader: &mut ReadHalf<'_>) -> Result<HelperMessage, HelperError> {
    match tokio::time::timeout(IDLE, read_frame(reader)).await {
        Ok(Ok(Frame {
            kind: FrameKind::GitBody,
            payload,
            ..
        })) => Ok(HelperMessage::Part(payload)),
        Ok(Ok(Frame {
            kind: FrameKind::GitPost,
            ..
        })) => Ok(HelperMessage::Whole),
        Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => Ok(HelperMessage::Nothing),
        Ok(_) => Err(HelperError::Frame),
        Err(_) => Err(HelperError::Silent),
    }
}

/// Completes when the helper disconnects, or sends when it should listen.
async fn disconnected(reader: &mut ReadHalf<'_>) {
    let _ = reader.read_u8().await;
}
