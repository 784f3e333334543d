//! A minimal HTTP client: one connection, one request at a time, no needless parsing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use memchr::memmem;
use serde_json::{Value, json};

use crate::Result;

/// A keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(address)?, buffer: Vec::new() })
    }

    /// Sends a request. Returns the response's body, if its status is 2xx.
    pub fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        let mut piece = [0; 16 << 10];
        loop {
            let read = self.stream.read(&mut piece)?;
            if read == 0 {
                return Err("the server closed the connection".into());
            }
            self.buffer.extend_from_slice(&piece[..read]);
            if let Some(body) = body(&self.buffer)? {
                return Ok(body.to_vec());
            }
        }
    }

    /// Sends a GET. Returns the response as JSON.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let body = self.exchange(request.as_bytes())?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Runs a turn to its end. Returns its task.
    pub fn turn(&mut self, group: &str, prompt: &str) -> Result<Value> {
        let task: Value = serde_json::from_slice(&self.exchange(&turn(group, prompt, 60))?)?;
        if task["ended_at"].is_null() {
            return Err(format!("a turn did not end: {task}").into());
        }
        Ok(task)
    }
}

/// Returns the request for a turn; its answer comes when the turn ended, or after `wait` seconds.
pub fn turn(group: &str, prompt: &str, wait: u32) -> Vec<u8> {
    let path = format!("/v1/groups/{group}/turns?wait={wait}");
    with_body("POST", &path, &json!({ "prompt": prompt }))
}

/// Returns the request for a turn that has to start within this many milliseconds.
pub fn turn_within(group: &str, prompt: &str, ms: u64) -> Vec<u8> {
    let path = format!("/v1/groups/{group}/turns");
    with_body("POST", &path, &json!({ "prompt": prompt, "expires_in_ms": ms }))
}

/// Returns the request that creates a group.
pub fn put(group: &str) -> Vec<u8> {
    with_body("PUT", &format!("/v1/groups/{group}"), &json!({}))
}

/// Returns the request that creates a group with this profile.
pub fn put_for(group: &str, agent: &str) -> Vec<u8> {
    with_body("PUT", &format!("/v1/groups/{group}"), &json!({ "agent": agent }))
}

/// Returns a POST without a body.
pub fn post(path: &str) -> Vec<u8> {
    with_body("POST", path, &json!({}))
}

/// Returns a DELETE.
pub fn delete(path: &str) -> Vec<u8> {
    format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

fn with_body(method: &str, path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Returns the body of `response` once it is complete.
///
/// # Errors
///
/// A status other than 2xx, or a response without a length.
pub fn body(response: &[u8]) -> Result<Option<&[u8]>> {
    let Some(end) = memmem::find(response, b"\r\n\r\n") else { return Ok(None) };
    let (head, body) = (std::str::from_utf8(&response[..end])?, &response[end + 4..]);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
    });
    let length: usize = length.unwrap_or_default();
    if body.len() < length {
        return Ok(None);
    }
    if head.as_bytes().get(9) != Some(&b'2') {
        return Err(format!("refused: {head}\n{}", String::from_utf8_lossy(body)).into());
    }
    Ok(Some(&body[..length]))
}
