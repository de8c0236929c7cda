//! Carries out a component's requested actions in a session: commands in the session's sandbox,
//! requests to the component's own server.
//!
//! # Invariants
//!
//! - Each command and each request is shown and logged before it is carried out, and its outcome
//!   afterwards.
//! - What is shown has no header and no key, since those are not the component's.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::ToolComponent;
use super::call::ToolHost;
use lucid_net::egress::Endpoint;
use lucid_sandbox::tools::truncate_middle;
use lucid_session::{DeltaKind, Environment, EventDraft, ToolOutput};
use lucid_types::exec::{ExecError, ExecRequest};
use lucid_types::sentence::sentence;
use lucid_types::unicode::{Utf8Decoder, readable_json};
use lucid_types::wit::tools::{Command, Output, Program};
use lucid_types::wit::types::{Error, ErrorKind, HttpRequest, HttpResponse};

/// How many of the first and of the last bytes of a command's output are passed to the component.
const MAX_RAW_OUTPUT: usize = 64 << 10;
/// The maximum displayed size of a command's output, and of a request's body, in bytes.
const MAX_SHOWN_OUTPUT: usize = 30_000;
const MAX_SHOWN_BODY: usize = 2_000;

/// Carries out what a component requests in one call.
pub(super) struct SessionToolHost {
    pub(super) component: Arc<ToolComponent>,
    pub(super) place: Option<Arc<dyn Environment>>,
    pub(super) output: ToolOutput,
}

impl SessionToolHost {
    /// Fails if the call is not to continue.
    async fn show(&self, event: EventDraft) -> Result<(), Error> {
        if (self.output.events)(event).await {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, "The call was given up."))
    }
}

impl ToolHost for SessionToolHost {
    fn run<'a>(
        &'a self,
        command: &'a Command,
        most: Duration,
    ) -> BoxFuture<'a, Result<Output, Error>> {
        async move {
            let Some(environment) = &self.place else {
                let what = "There is no sandbox in this session, so no command can be run.";
                return Err(Error::new(ErrorKind::Unsupported, what));
            };
            let line = line_of(&command.program);
            self.show(EventDraft {
                command: Some(line.clone()),
                ..EventDraft::text("CmdRunAction", &line)
            })
            .await?;
            let deltas = self.output.deltas.clone();
            let mut pieces = Utf8Decoder::default();
            let output = move |bytes: &[u8]| {
                let text = pieces.push(bytes);
                if !text.is_empty() {
                    deltas(DeltaKind::Terminal, &text);
                }
            };
            let request = request_of(command, &environment.root(), most);
            let ran = environment.exec(request, Box::new(output)).await;
            let ran = ran.map_err(|why| match why {
                ExecError::Refused(sentence) => Error::invalid(sentence),
                why => Error::new(ErrorKind::Unsupported, sentence(why)),
            })?;
            self.show(EventDraft {
                command: Some(line),
                exit_code: Some(ran.exit_code),
                ..EventDraft::text(
                    "CmdOutputObservation",
                    truncate_middle(ran.output.clone(), MAX_SHOWN_OUTPUT),
                )
            })
            .await?;
            Ok(Output {
                exit_code: ran.exit_code,
                timed_out: ran.timed_out,
                text: ran.output,
                left_out: ran.omitted,
            })
        }
        .boxed()
    }

    fn send<'a>(
        &'a self,
        request: &'a HttpRequest,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpResponse, Error>> {
        async move {
            let ToolComponent {
                endpoint,
                egress,
                key,
                ..
            } = &*self.component;
            let Some(endpoint) = endpoint else {
                let what = "These tools were given no server: `base_url` in their entry of the deployment's manifest says which one they may ask.";
                return Err(Error::new(ErrorKind::Unsupported, what));
            };
            self.show(EventDraft::text(
                "CmdRunAction",
                shown_request(endpoint, request),
            ))
            .await?;
            let answered = egress.exchange(endpoint, key.as_ref(), request).await;
            let summary = match &answered {
                Ok(answer) => format!("HTTP {}, {} bytes", answer.status, answer.body.len()),
                Err(why) => format!("No answer: {why}."),
            };
            self.show(EventDraft::text("CmdOutputObservation", summary))
                .await?;
            Ok(readable(answered?))
        }
        .boxed()
    }
}

/// Makes a response's JSON readable in every language: some servers write half a surrogate pair.
fn readable(answer: HttpResponse) -> HttpResponse {
    let is_json = answer.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("content-type")
            && header.value.to_ascii_lowercase().contains("json")
    });
    if !is_json {
        return answer;
    }
    let body = readable_json(&answer.body).into_owned();
    HttpResponse { body, ..answer }
}

/// A command for display.
fn line_of(program: &Program) -> String {
    match program {
        Program::Shell(line) => line.clone(),
        Program::Argv(argv) => {
            let words = argv.iter().map(String::as_str);
            // Quoting fails for a NUL only, which no argument of a program can have.
            shlex::try_join(words).unwrap_or_else(|_| argv.join(" "))
        }
    }
}

fn request_of(command: &Command, root: &str, most: Duration) -> ExecRequest {
    let request = match &command.program {
        Program::Argv(argv) => ExecRequest::argv(argv),
        Program::Shell(line) => ExecRequest::shell(line),
    };
    let wanted = command
        .timeout_ms
        .map(|ms| Duration::from_millis(ms.into()));
    let time = wanted.map_or(most, |wanted| wanted.min(most));
    let time = time.max(Duration::from_millis(1));
    let mut request = request
        .timeout(time)
        .keep_output(MAX_RAW_OUTPUT, MAX_RAW_OUTPUT);
    if let Some(folder) = &command.folder {
        let root = root.trim_end_matches('/');
        request = request.cwd(format!("{root}/{}", folder.trim_start_matches('/')));
    }
    for (name, value) in &command.environment {
        request = request.env(name, value);
    }
    if let Some(text) = &command.stdin {
        request = request.stdin(text);
    }
    request
}

/// A request for display: no header is shown, and the key is in none of this.
fn shown_request(endpoint: &Endpoint, request: &HttpRequest) -> String {
    let HttpRequest {
        method,
        path,
        query,
        body,
        ..
    } = request;
    let base = endpoint.base_url().as_str().trim_end_matches('/');
    let mut description = format!("{method} {base}{path}");
    let mut encoded = url::form_urlencoded::Serializer::new(String::new());
    encoded.extend_pairs(query);
    let encoded = encoded.finish();
    if !encoded.is_empty() {
        description.push('?');
        description.push_str(&encoded);
    }
    if !body.is_empty() {
        description.push('\n');
        let text = String::from_utf8_lossy(body).into_owned();
        description.push_str(&truncate_middle(text, MAX_SHOWN_BODY));
    }
    description
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;
    use lucid_net::egress::KeyInjection;
    use lucid_types::wit::types::Header;

    #[test]
    fn a_request_is_shown_as_it_is_sent_and_a_long_body_is_cut() {
        let url = Url::parse("https://tickets.example.com/api/").unwrap();
        let endpoint = Endpoint::new(url, KeyInjection::Bearer).unwrap();
        let mut request = HttpRequest {
            method: "POST".into(),
            path: "/a/b".into(),
            query: vec![("q".into(), "x&y z".into())],
            headers: Vec::new(),
            body: b"{}".to_vec(),
        };
        assert_eq!(
            shown_request(&endpoint, &request),
            "POST https://tickets.example.com/api/a/b?q=x%26y+z\n{}"
        );
        request.body = vec![b'x'; 1 << 20];
        let description = shown_request(&endpoint, &request);
        assert!(description.len() < 3_000, "{} bytes", description.len());
    }

    #[test]
    fn half_a_surrogate_pair_in_a_servers_json_is_replaced_and_other_bodies_stay() {
        let answer = |kind: &str| HttpResponse {
            status: 200,
            headers: vec![Header {
                name: "Content-Type".into(),
                value: kind.into(),
            }],
            body: br#"{"a":"\ud83d"}"#.to_vec(),
        };
        for kind in [
            "application/json",
            "application/problem+JSON; charset=utf-8",
        ] {
            assert_eq!(readable(answer(kind)).body, br#"{"a":"\ufffd"}"#);
        }
        assert_eq!(readable(answer("text/plain")), answer("text/plain"));
    }

    fn command(program: Program) -> Command {
        Command {
            program,
            folder: None,
            environment: Vec::new(),
            stdin: None,
            timeout_ms: None,
        }
    }

    #[test]
    fn a_command_runs_in_the_workspace_no_longer_than_the_call_has_left() {
        let most = Duration::from_secs(9);
        let made = |command: &Command| format!("{:?}", request_of(command, "/workspace", most));
        let mut own = command(Program::Shell("make".into()));
        assert!(made(&own).contains("timeout: 9s"), "{}", made(&own));
        own.timeout_ms = Some(60_000);
        assert!(made(&own).contains("timeout: 9s"), "{}", made(&own));
        own.timeout_ms = Some(500);
        assert!(made(&own).contains("timeout: 500ms"), "{}", made(&own));
        for (folder, wanted) in [("src", "/workspace/src"), ("/etc", "/workspace/etc")] {
            own.folder = Some(folder.into());
            let made = made(&own);
            assert!(made.contains(&format!("{wanted:?}")), "{folder}: {made}");
        }
    }

    proptest! {
        /// A user who copies the line runs the same command as the component.
        #[test]
        fn a_shell_reads_a_shown_line_as_the_words_it_was_made_of(
            words in prop::collection::vec("[a-z '\"\\\\$`*;&|<>()#~!\\[\\]{}?=äß-]{0,12}", 1..5)
        ) {
            let argv: Vec<String> = std::iter::once("printf".to_owned())
                .chain(["%s\\n".to_owned()])
                .chain(words.iter().map(|word| format!("<{word}>")))
                .collect();
            let line = line_of(&Program::Argv(argv));
            let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            let wanted: String = words.iter().map(|word| format!("<{word}>\n")).collect();
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{}", line);
        }
    }
}
