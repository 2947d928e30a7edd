//! Clients that ask for much, read slowly or not at all: memory stays within the container's limit, and others are answered.

use std::time::{Duration, Instant};

use reqwest::Method;
use rest_rig::{Program, answer, eventually};
use sqlx::Executor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{ids, post, ready};

/// What docker-compose.yml gives the program.
const MEMORY_MB: u64 = 64;
/// Posts of 512 kB each, which compress well.
const LONG_POSTS: &str = "insert into posts (title, content, author_id)
    select 'long', repeat(md5(n::text), 16384), 2 from generate_series(1, 200) as n";
const POSTS: i64 = 200;

fn assert_memory_is_bounded(program: &Program) {
    let peak_mb = program.peak_memory_kb() / 1024;
    assert!(peak_mb < MEMORY_MB, "{peak_mb} MB");
}

/// A client that sends `request` and reads nothing of what is answered.
async fn deaf(program: &Program, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(program.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn pages_of_long_posts_are_whole_and_take_bounded_memory_however_many_ask() {
    let program = ready().await;
    program.database().sql().await.execute(LONG_POSTS).await.unwrap();
    let page = program.get("/api/posts?limit=150").await;
    assert_eq!(ids(&page.json()), (1..=150).collect::<Vec<_>>());
    assert_eq!(page.header("link"), "</api/posts?limit=150&after=150>; rel=\"next\"");
    assert_eq!(page.json()[149], program.get("/api/posts/150").await.json());
    let rest = program.get("/api/posts?limit=150&after=150").await;
    assert_eq!(ids(&rest.json()), (151..=POSTS).collect::<Vec<_>>());
    assert!(!rest.headers.contains_key("link"));
    let of_department = program.get("/api/posts/by-department/개발팀?limit=20").await;
    assert_eq!(ids(&of_department.json()), (1..=20).collect::<Vec<_>>());
    drop((page, rest, of_department));

    let many = (0..24).map(|_| async {
        let read = answer(
            program
                .request(Method::GET, "/api/posts?limit=50")
                .timeout(Duration::from_secs(60)),
        )
        .await;
        assert_eq!((read.status.as_u16(), ids(&read.json()).len()), (200, 50));
    });
    let small = async {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            let read = program.get("/api/posts/users/2").await;
            assert_eq!(read.status, 200, "{read:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(futures_util::future::join_all(many), small);
    assert_memory_is_bounded(&program);
}

#[tokio::test]
async fn clients_that_never_read_are_cut_off_and_hold_nobody_up() {
    let program = ready().await;
    program.database().sql().await.execute(LONG_POSTS).await.unwrap();
    let mut deaf_ones = Vec::new();
    for n in 0..48 {
        let path = match n % 3 {
            0 => "/api/posts".to_owned(),
            1 => "/api/posts?limit=1000".to_owned(),
            _ => format!("/api/posts/{}", n + 1),
        };
        deaf_ones.push(deaf(&program, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..50 {
        assert_eq!(program.get("/api/posts/users/2").await.status, 200);
        assert_eq!(program.post("/api/posts", &post(2)).await.status, 201);
    }
    let short = program.get("/api/posts/201").await;
    assert_eq!(short.status, 200, "{short:?}");
    assert_memory_is_bounded(&program);
    // The room that they held is given back.
    let started = Instant::now();
    while program.get("/api/posts/1").await.status != 200 {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_memory_is_bounded(&program);
    drop(deaf_ones);
}

#[tokio::test]
async fn half_heads_and_half_bodies_are_cut_off() {
    let program = ready().await;
    let body = "x".repeat(20_000);
    let half_body = format!(
        "POST /api/posts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 400000\r\n\r\n{{\"title\": \"{body}"
    );
    let mut halves = Vec::new();
    for _ in 0..100 {
        halves.push(deaf(&program, "GET /api/posts HTTP/1.1\r\nHost: x\r\nX-Slow: ").await);
        halves.push(deaf(&program, &half_body).await);
    }
    let started = Instant::now();
    assert_eq!(program.get("/api/posts").await.text, "[]");
    for mut half in halves {
        let mut rest = Vec::new();
        // There may be an answer or none. The connection must end.
        let ended = tokio::time::timeout(Duration::from_secs(60), half.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {:?}", started.elapsed());
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert_memory_is_bounded(&program);
}

#[tokio::test]
async fn a_statement_whose_client_has_gone_ends() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    let mut holder = program.database().sql().await;
    holder.execute("begin").await.unwrap();
    holder.execute("lock table posts").await.unwrap();
    let waiting = async || {
        let sql = "select count(*) from pg_locks where relation = 'posts'::regclass and not granted";
        let row = program.database().sql().await.fetch_one(sql).await.unwrap();
        sqlx::Row::get::<i64, _>(&row, 0)
    };
    let client = deaf(&program, "GET /api/posts/1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    eventually("the statement waits", async || waiting().await > 0).await;
    drop(client);
    let started = Instant::now();
    eventually("the statement ends", async || waiting().await == 0).await;
    // Sooner than by the time limit of statements.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    holder.execute("rollback").await.unwrap();
}
