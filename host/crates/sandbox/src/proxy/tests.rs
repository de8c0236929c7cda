//! The proxy between real sockets, and its readers over any bytes.

use lucid_mutations::{cuts, mutated, pieces};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::request::{forward_answer, parse_http};
use super::*;

#[derive(Default)]
struct Recorder(Mutex<Vec<ProxiedConnection>>);

impl ConnectionRecorder for Recorder {
    fn record(&self, connection: ProxiedConnection) {
        self.0.lock().push(connection);
    }
}

/// A proxy, and what it recorded.
struct ProxyFixture {
    address: std::net::SocketAddr,
    recorder: Arc<Recorder>,
    _proxy: ForwardProxy,
}

impl ProxyFixture {
    async fn new(private_hosts: &str) -> Self {
        Self::with_rules(ProxyRules::new(private_hosts.parse().unwrap(), 64)).await
    }

    async fn with_rules(rules: ProxyRules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorder = Arc::new(Recorder::default());
        Self {
            address,
            recorder: recorder.clone(),
            _proxy: ForwardProxy::start(listener, &"alice".into(), rules, recorder),
        }
    }

    /// Sends bytes, and reads the answer to its end.
    async fn ask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut program = TcpStream::connect(self.address).await.unwrap();
        program.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = program.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("the proxy answers and closes the connection")
            .unwrap();
        answer
    }

    async fn ask_text(&self, text: &str) -> String {
        String::from_utf8(self.ask(text.as_bytes()).await).unwrap()
    }

    /// What was recorded, once there are as many.
    async fn recorded(&self, count: usize) -> Vec<ProxiedConnection> {
        let all = async {
            loop {
                let found = self.recorder.0.lock().clone();
                if found.len() >= count {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all)
            .await
            .expect("connections are recorded when they are over")
    }
}

/// A server that answers each connection with what it was sent up to an empty line.
async fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let _ = stream.write_all(&seen).await;
            });
        }
    });
    port
}

/// A server that keeps its connections, as it says, and answers with the request that it saw.
async fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") && stream.read_buf(&mut seen).await.unwrap_or(0) > 0
            {
            }
            let head = format!(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n",
                seen.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&seen).await;
        }
    });
    port
}

fn outcomes(recorded: &[ProxiedConnection]) -> Vec<ConnectionOutcome> {
    recorded.iter().map(|it| it.outcome).collect()
}

#[tokio::test]
async fn a_program_is_connected_by_connect_by_url_and_by_socks_and_each_is_recorded() {
    let port = mirror().await;
    let proxy = ProxyFixture::new("127.0.0.1").await;
    let by_connect = proxy
        .ask_text(&format!(
            "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello\r\n\r\n"
        ))
        .await;
    assert_eq!(by_connect, "HTTP/1.1 200 Connected\r\n\r\nhello\r\n\r\n");
    let web = web_server().await;
    let by_url = proxy
        .ask_text(&format!(
            "GET http://127.0.0.1:{web}/a?b HTTP/1.1\r\nHost: other\r\nProxy-Authorization: x\r\nAccept: */*\r\n\r\n"
        ))
        .await;
    let seen = format!(
        "GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:{web}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(
        by_url,
        format!(
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{seen}",
            seen.len()
        ),
        "the answer is the connection's last, whatever the server says"
    );
    let [high, low] = port.to_be_bytes();
    let socks = [
        5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low, b'x', 13, 10, 13, 10,
    ];
    let by_socks = proxy.ask(&socks).await;
    let greeted = [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x', 13, 10, 13, 10];
    assert_eq!(by_socks, greeted);
    let recorded = proxy.recorded(3).await;
    assert_eq!(outcomes(&recorded), [ConnectionOutcome::Connected; 3]);
    assert_eq!((recorded[0].sent, recorded[0].received), (9, 9));
    let asked: Vec<String> = recorded
        .iter()
        .map(|it| it.destination.to_string())
        .collect();
    let at = |port: u16| format!("127.0.0.1:{port}");
    assert_eq!(asked, [at(port), at(web), at(port)]);
}

#[tokio::test]
async fn what_is_of_the_hosts_own_networks_is_refused_under_every_name() {
    let port = mirror().await;
    let proxy = ProxyFixture::new("").await;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "2130706433",
        "0x7f.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "255.255.255.255",
    ];
    for host in hosts {
        let answer = proxy
            .ask_text(&format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{host}: {answer}");
        assert!(answer.contains("SANDBOX_PRIVATE_HOSTS"), "{answer}");
        let answer = proxy
            .ask_text(&format!("GET http://{host}:{port}/ HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{host}: {answer}");
    }
    let recorded = proxy.recorded(2 * hosts.len()).await;
    assert!(
        recorded
            .iter()
            .all(|it| it.outcome == ConnectionOutcome::Refused)
    );
    let socks = [5, 1, 0, 5, 1, 0, 1, 169, 254, 169, 254, 0, 80];
    assert_eq!(proxy.ask(&socks).await[2..4], [5, 2]);
}

#[tokio::test]
async fn a_private_host_is_reached_at_the_port_that_the_operator_named_and_no_other() {
    let (port, other) = (mirror().await, mirror().await);
    let proxy = ProxyFixture::new(&format!("localhost:{port}")).await;
    let ask = async |port| {
        let text = format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\n\r\n\r\n");
        proxy.ask_text(&text).await
    };
    assert!(ask(port).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(other).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be_so() {
    let proxy = ProxyFixture::new("127.0.0.1, nowhere.invalid").await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for host in [
        format!("127.0.0.1:{closed}"),
        "nowhere.invalid:80".to_owned(),
    ] {
        let answer = proxy
            .ask_text(&format!("CONNECT {host} HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{host}: {answer}");
        assert!(answer.contains(&host), "{answer}");
    }
    assert_eq!(
        outcomes(&proxy.recorded(2).await),
        [ConnectionOutcome::Failed; 2]
    );
}

#[tokio::test]
async fn what_is_no_request_for_a_proxy_gets_an_answer_that_says_so() {
    let proxy = ProxyFixture::new("").await;
    for (request, says) in [
        (
            "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "names no server",
        ),
        ("CONNECT example.com HTTP/1.1\r\n\r\n", "names no server"),
        ("CONNECT :80 HTTP/1.1\r\n\r\n", "names no server"),
        ("GET https://example.com/ HTTP/1.1\r\n\r\n", "CONNECT"),
        ("GET ftp://example.com/ HTTP/1.1\r\n\r\n", "names no server"),
        ("\x16\x03\x01 hello\r\n\r\n", "not HTTP"),
    ] {
        let answer = proxy.ask_text(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
        assert!(answer.contains(says), "{request}: {answer}");
    }
    let long = format!("GET http://a/ HTTP/1.1\r\nX: {}", "x".repeat(70_000));
    let mut program = TcpStream::connect(proxy.address).await.unwrap();
    let _ = program.write_all(long.as_bytes()).await;
    let mut start = [0; 12];
    program.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 400");
}

#[tokio::test]
async fn both_sides_may_end_their_halves_and_all_bytes_arrive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        all.len()
    });
    let proxy = ProxyFixture::new("127.0.0.1").await;
    let mut program = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n");
    program.write_all(request.as_bytes()).await.unwrap();
    let mut accepted = [0; 26];
    program.read_exact(&mut accepted).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    program.write_all(&sent).await.unwrap();
    program.shutdown().await.unwrap();
    let mut back = Vec::new();
    program.read_to_end(&mut back).await.unwrap();
    assert!(back == sent);
    assert_eq!(counted.await.unwrap(), sent.len());
    let recorded = proxy.recorded(1).await;
    assert_eq!(
        (recorded[0].sent, recorded[0].received),
        (3_000_000, 3_000_000)
    );
}

#[tokio::test]
async fn a_sandbox_without_a_connection_holds_none_of_those_that_all_have() {
    let rules = ProxyRules::new("127.0.0.1".parse().unwrap(), 2);
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(ProxyFixture::with_rules(rules.clone()).await);
    }
    let port = mirror().await;
    let proxy = ProxyFixture::with_rules(rules.clone()).await;
    let request = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello\r\n\r\n");
    let answer = proxy.ask_text(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // With all of them held, the next one is told so.
    let held = rules.connections.acquire_many(2);
    let _held = tokio::time::timeout(Duration::from_secs(20), held)
        .await
        .expect("a connection that is over gives its place back")
        .unwrap();
    let answer = proxy.ask_text(&request).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("try again"), "{answer}");
}

#[test]
fn a_users_share_is_one_for_all_their_sandboxes_and_goes_with_the_last() {
    let rules = ProxyRules::new(PrivateHosts::default(), 4000);
    let (alice, again) = (
        rules.shares_of(&"alice".into()),
        rules.shares_of(&"alice".into()),
    );
    assert!(Arc::ptr_eq(&alice, &again));
    assert_eq!(alice.connections.available_permits(), 1000);
    assert_eq!(alice.lookups.available_permits(), 16);
    drop((alice, again));
    let _bob = rules.shares_of(&"bob".into());
    assert_eq!(rules.users.lock().len(), 1, "alice has no sandbox any more");
}

#[tokio::test]
async fn dropping_the_proxy_closes_its_connections_and_records_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = ProxyFixture::new("127.0.0.1").await;
    let mut program = TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n");
    program.write_all(request.as_bytes()).await.unwrap();
    let mut accepted = [0; 26];
    program.read_exact(&mut accepted).await.unwrap();
    let recorder = Arc::clone(&proxy.recorder);
    drop(proxy);
    let mut rest = Vec::new();
    let _ = program.read_to_end(&mut rest).await;
    let ended = async {
        while recorder.0.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .expect("what was open is recorded");
}

#[test]
fn the_list_of_private_hosts_has_names_addresses_and_ports() {
    let hosts: PrivateHosts = "Registry.corp, 10.0.0.7:8080,[fd12::1]:443, fd12::2 ,"
        .parse()
        .unwrap();
    let contains = |host, port| hosts.contains(&Destination::new(host, port).unwrap());
    assert!(contains("registry.corp", 1) && contains("registry.corp", 2));
    assert!(contains("10.0.0.7", 8080) && !contains("10.0.0.7", 80));
    assert!(contains("fd12::1", 443) && !contains("fd12::1", 80));
    assert!(contains("fd12::2", 9));
    // In any spelling.
    assert!(contains("[FD12:0:0::0001]", 443) && contains("fd12:0000::2", 9));
    for wrong in ["a b", "a:b", "http://a", "a/8", "a:70000"] {
        assert!(wrong.parse::<PrivateHosts>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_of_requests_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_http(&bytes);
    }

    #[test]
    fn a_request_that_is_passed_on_has_one_head_and_its_own_host(
        host in "[a-z0-9.-]{1,20}",
        path in "[ -~]{0,30}",
        name in "[A-Za-z-]{1,12}",
        value in "[ -~\\t]{0,30}",
    ) {
        let text = format!("GET http://{host}/{path} HTTP/1.1\r\n{name}: {value}\r\n\r\n");
        if let Ok(Some(request)) = parse_http(text.as_bytes()) {
            let head = String::from_utf8(request.first).unwrap();
            prop_assert_eq!(head.matches("\r\n\r\n").count(), 1);
            prop_assert!(head.ends_with("\r\n\r\n"));
            prop_assert_eq!(head.to_ascii_lowercase().matches("\r\nhost:").count(), 1);
        }
    }
}

/// Two ends of a connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await;
    let (theirs, _) = listener.accept().await.unwrap();
    let ours = ours.unwrap();
    ours.set_nodelay(true).unwrap();
    (ours, theirs)
}

/// Sends bytes in these pieces, each of which may arrive alone, and then nothing more. What comes back
/// is read to its end.
async fn send_pieces(stream: TcpStream, bytes: &[u8], cuts: &[Index]) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        for piece in pieces(bytes, cuts) {
            if write.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(write);
    };
    let mut back = Vec::new();
    let (_, ()) = tokio::join!(read.read_to_end(&mut back), sending);
    back
}

/// Where a request leads, if it is one.
async fn destination(bytes: &[u8], cuts: &[Index]) -> Option<Destination> {
    let (program, mut proxy) = connected().await;
    let reading = async {
        let request = request::read(&mut proxy).await;
        drop(proxy);
        request
    };
    let (request, _) = tokio::join!(reading, send_pieces(program, bytes, cuts));
    request.ok().map(|request| request.destination)
}

/// What a program gets of a server's answer, if it is one.
async fn answer(bytes: &[u8], cuts: &[Index]) -> Option<Vec<u8>> {
    let ((server, mut from), (mut to, program)) = (connected().await, connected().await);
    let forwarding = async {
        let (mut answer, _) = from.split();
        let (_, mut program) = to.split();
        let whole = async {
            forward_answer(&mut answer, &mut program).await?;
            tokio::io::copy(&mut answer, &mut program).await
        };
        let whole = whole.await;
        drop((from, to));
        whole
    };
    let (whole, _, told) = tokio::join!(
        forwarding,
        send_pieces(server, bytes, cuts),
        send_pieces(program, &[], &[]),
    );
    whole.is_ok().then_some(told)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    // Each case has connections of its own.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn a_mutated_request_leads_to_the_same_server_wherever_it_is_cut(
        bytes in mutated([
            &b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n\x16\x03\x01"[..],
            b"GET http://example.com:8080/a?b=c HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
            b"POST http://[2001:db8::1]/ HTTP/1.0\nContent-Length: 3\n\nabc",
            b"\x05\x02\x00\x02\x05\x01\x00\x03\x0bexample.com\x01\xbb",
            b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50",
            b"\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50",
        ]),
        cuts in cuts(),
    ) {
        let (whole, cut) = block_on(async {
            (destination(&bytes, &[]).await, destination(&bytes, &cuts).await)
        });
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn a_mutated_answer_is_the_last_of_its_connection_wherever_it_is_cut(
        bytes in mutated([
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello"[..],
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.0 404 \nTransfer-Encoding: chunked\n\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nbytes",
        ]),
        cuts in cuts(),
    ) {
        let (whole, cut) = block_on(async { (answer(&bytes, &[]).await, answer(&bytes, &cuts).await) });
        prop_assert_eq!(&whole, &cut);
        // A head grows by the line that says that it is the last.
        prop_assert!(whole.is_none_or(|told| told.len() <= 2 * bytes.len() + 64));
    }
}
