//! What a record holds never becomes markup. Each hostile record has a harmless twin: every page must have the same elements and attributes for both.

use std::fmt::Write as _;

use stack::eventually_ok;

use super::page::Page;
use super::server::{DEADLINE, Sent, Server, shared};

/// Texts that would do something in a page that takes them for markup, or that would mislead its reader.
const HOSTILE: [&[u8]; 10] = [
    b"<script>alert(1)</script>",
    b"\"><img src=x onerror=alert(1)>",
    b"'><svg/onload=alert(1)>",
    b"javascript:alert(1)",
    b"</td></tr></table></main><iframe src=javascript:alert(1)></iframe>",
    b"</textarea></title></pre></code><style>*{display:none}</style>",
    "\u{202E}gnp.exe\u{200B}".as_bytes(),
    b"a\x00b\x1b[31m\r\nSet-Cookie: x=y",
    b"\xff\xfe<b>bold</b>\xc0\xaf",
    b"&lt;script&gt;alert(1)&lt;/script&gt; {{7*7}} ${7*7}",
];

/// A record with the same text everywhere: as key, in every header, and in every field of the value.
struct Record {
    text: Vec<u8>,
    batch: String,
}

impl Record {
    fn hostile(number: usize) -> Self {
        // The number makes the key one of its own.
        Self {
            text: [HOSTILE[number], number.to_string().as_bytes()].concat(),
            batch: format!("hostile-{number}"),
        }
    }

    fn harmless(number: usize) -> Self {
        Self {
            text: format!("harmless-{number}").into_bytes(),
            batch: format!("harmless-{number}"),
        }
    }

    /// JSON where the text is one, and otherwise the bytes as they are.
    fn value(&self) -> Vec<u8> {
        match std::str::from_utf8(&self.text) {
            Ok(text) => serde_json::json!({
                "eventType": text, "userId": text, "version": text, "timestamp": text,
                "user": {"id": text, "name": text, "email": text, "department": text, "status": text},
            })
            .to_string()
            .into_bytes(),
            Err(_) => self.text.clone(),
        }
    }

    /// The name of a header can be any text that has no zero byte.
    fn header_name(&self) -> String {
        String::from_utf8_lossy(&self.text).replace('\u{0}', "")
    }

    fn send(&self, server: &Server) {
        let (value, name) = (self.value(), self.header_name());
        let text = self.text.as_slice();
        server.produce(&[Sent {
            topic: "user-events",
            key: text,
            value: &value,
            headers: vec![
                ("batch", self.batch.as_bytes()),
                ("id", text),
                ("eventType", text),
                ("position", text),
                (&name, text),
            ],
        }]);
    }

    /// The text as part of an address.
    fn encoded(&self) -> String {
        self.text.iter().fold(String::new(), |mut encoded, byte| {
            let _ = write!(encoded, "%{byte:02X}");
            encoded
        })
    }
}

/// Everything that shows the record or what was typed.
async fn pages(server: &Server, record: &Record) -> Vec<Page> {
    let list = format!("/events?header=batch={}", record.batch);
    let found = eventually_ok(DEADLINE, "the record", || async {
        let page = server.get(&list).await;
        anyhow::ensure!(page.places().len() == 1, "{}", page.text);
        Ok(page)
    })
    .await
    .expect("the record");
    let place = found.places()[0].to_owned();
    let (partition, offset) = place.split_once('/').expect("a place");
    let letter =
        format!("select max(id) from view_dead_letters where partition = {partition} and record_offset = {offset}");
    let letter = eventually_ok(DEADLINE, "a letter", || async {
        let rows = crate::e2e::rows::in_views(&server.pipeline, &letter).await;
        rows[0][0].clone().ok_or_else(|| anyhow::anyhow!("no letter yet"))
    })
    .await
    .expect("a letter");
    let mut all = vec![found];
    let mut addresses = vec![
        format!("/events/user-events/{place}"),
        format!("/trace?topic=user-events&partition={partition}&offset={offset}"),
        format!("/letters/{letter}"),
    ];
    // A query that is no UTF-8 is refused before it reaches a page.
    if std::str::from_utf8(&record.text).is_ok() {
        let text = record.encoded();
        addresses.extend([
            format!("/events?key={text}&id={text}&header={text}={text}&field={text}={text}"),
            format!("/events?topic={text}&from={text}&offset={text}&position={text}&order={text}&n={text}&at={text}"),
            format!("/trace?id={text}"),
            format!("/trace?topic=user-events&key={text}"),
            format!("/trace?topic={text}&key={text}"),
            format!("/letters?reason={text}&which={text}"),
        ]);
    }
    for address in addresses {
        all.push(server.get(&address).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_record_holds_never_becomes_markup() {
    let server = shared().await;
    for number in 0..HOSTILE.len() {
        let (hostile, harmless) = (Record::hostile(number), Record::harmless(number));
        hostile.send(&server);
        harmless.send(&server);
        let (hostile, harmless) = (pages(&server, &hostile).await, pages(&server, &harmless).await);
        for (page, twin) in hostile.iter().zip(&harmless) {
            page.assert_harmless();
            assert_eq!(page.status, twin.status, "{}", page.address);
            // The list of letters also has those that came meanwhile.
            if !page.address.starts_with("/letters?") {
                assert_eq!(
                    page.skeleton(),
                    twin.skeleton(),
                    "{} and {}",
                    page.address,
                    twin.address
                );
            }
        }
    }
    let all = server.get("/letters").await;
    all.assert_harmless();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_followed_topic_are_text_as_well() {
    let server = shared().await;
    let mut tail = reqwest::get(server.console().url("/events/tail?header=batch=tailed"))
        .await
        .expect("an answer");
    let sending = async {
        // It begins at the topic's end, at some moment after the answer.
        loop {
            for text in HOSTILE {
                server.produce(&[Sent {
                    topic: "user-events",
                    key: text,
                    value: text,
                    headers: vec![("batch", b"tailed"), ("id", text), ("eventType", text)],
                }]);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let receiving = async {
        let (mut text, mut rows) = (String::new(), 0);
        while rows < 2 * HOSTILE.len() {
            let chunk = tail.chunk().await.expect("the tail goes on").expect("it has no end");
            text.push_str(&String::from_utf8_lossy(&chunk));
            while let Some((event, rest)) = text.split_once("\n\n") {
                rows += assert_rows_harmless(event);
                text = rest.to_owned();
            }
        }
    };
    tokio::select! {
        () = sending => unreachable!("it goes on"),
        received = tokio::time::timeout(DEADLINE, receiving) => received.expect("records in time"),
    }
}

/// How many rows the event has.
fn assert_rows_harmless(event: &str) -> usize {
    let Some(data) = event.split_once("data: ").map(|(_, data)| data) else {
        return 0;
    };
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    let rows = data["rows"].as_str().expect("rows");
    let page = Page::parse(
        "/events/tail",
        reqwest::StatusCode::OK,
        format!("<table><tbody>{rows}</tbody></table>"),
    );
    page.assert_harmless();
    let count = page
        .skeleton()
        .iter()
        .filter(|element| element.contains(" tr "))
        .count();
    assert_eq!(page.places().len(), count, "{rows}");
    count
}
