//! Which requests are served, by their `Host`, `Origin` and `Sec-Fetch-Site` (C5, C6).
//!
//! A server that starts shells must not obey a web page. A page of another site cannot choose its
//! `Host` and `Origin`; so both are compared with an exact list. A browser sends no `Origin` for an
//! image or a link, but says that it is for another site.

use actix_web::http::{
    header::{self, HeaderMap},
    uri::Authority,
};

use super::error::ApiError;

/// The names that always mean this machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The hosts that the server answers to.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Allows the loopback names on any port (a tunnel may have another one), and the `configured`
    /// hosts: a name is allowed on every port, a name with a port on that port only.
    pub fn new(configured: &[String]) -> Self {
        Self(configured.iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Checks that a request with these headers, for this request target, may be routed.
    ///
    /// # Errors
    ///
    /// [`ApiError::BadHost`], [`ApiError::ForeignHost`] or [`ApiError::ForeignOrigin`].
    pub fn check(&self, headers: &HeaderMap, target: Option<&Authority>) -> Result<(), ApiError> {
        let mut hosts = headers.get_all(header::HOST);
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(ApiError::BadHost);
        };
        let host = host.to_str().map_err(|_| ApiError::BadHost)?.to_ascii_lowercase();
        let authority: Authority = host.parse().map_err(|_| ApiError::BadHost)?;
        let port_is_sound = host == authority.host() || authority.port_u16().is_some();
        if host.contains('@') || !port_is_sound {
            return Err(ApiError::BadHost);
        }
        for authority in std::iter::once(&authority).chain(target) {
            if !self.contains(authority) {
                return Err(ApiError::ForeignHost);
            }
        }
        let mut origins = headers.get_all(header::ORIGIN);
        match (origins.next(), origins.next()) {
            _ if is_for_another_site(headers) => Err(ApiError::ForeignOrigin),
            (None, _) => Ok(()),
            (Some(origin), None) if is_same_site(origin.as_bytes(), &host) => Ok(()),
            (Some(_), _) => Err(ApiError::ForeignOrigin),
        }
    }

    fn contains(&self, authority: &Authority) -> bool {
        let whole = authority.as_str().to_ascii_lowercase();
        let name = authority.host().to_ascii_lowercase();
        LOOPBACK.contains(&&*name) || self.0.contains(&name) || self.0.contains(&whole)
    }
}

/// Whether `origin` is a page of this `host`, behind TLS or not.
fn is_same_site(origin: &[u8], host: &str) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let origin = origin.to_ascii_lowercase();
    ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host))
}

/// Whether a browser says that it asks for a page of another site (Fetch Metadata).
fn is_for_another_site(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site");
    sites.any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn check(hosts: &[&str], origin: Option<&str>, target: Option<&str>) -> &'static str {
        let mut headers = HeaderMap::new();
        let add = |headers: &mut HeaderMap, name: HeaderName, value: &str| {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        };
        hosts.iter().for_each(|host| add(&mut headers, header::HOST, host));
        origin.iter().for_each(|origin| add(&mut headers, header::ORIGIN, origin));
        let allowed = AllowedHosts::new(&["Green.example".into(), "pinned.example:8443".into()]);
        let target = target.map(|target| target.parse().unwrap());
        match allowed.check(&headers, target.as_ref()) {
            Ok(()) => "ok",
            Err(ApiError::BadHost) => "bad",
            Err(ApiError::ForeignHost) => "host",
            Err(_) => "origin",
        }
    }

    /// C6: a page of another site is refused also where a browser sends no `Origin`.
    #[test]
    fn what_a_browser_asks_for_another_site_is_refused() {
        #[rustfmt::skip]
        let cases: [(&[&str], bool); 7] = [
            (&[],                            true),
            (&["same-origin"],               true),
            (&["same-site"],                 true),
            (&["none"],                      true),
            (&["cross-site"],                false),
            (&["Cross-Site"],                false),
            (&["same-origin", "cross-site"], false),
        ];
        for (sites, is_allowed) in cases {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, HeaderValue::from_static("localhost"));
            for site in sites {
                let name = HeaderName::from_static("sec-fetch-site");
                headers.append(name, site.parse().unwrap());
            }
            let checked = AllowedHosts::default().check(&headers, None);
            assert_eq!(checked.is_ok(), is_allowed, "{sites:?}");
        }
    }

    type Case = (&'static [&'static str], Option<&'static str>, Option<&'static str>, &'static str);

    /// C5 and C6.
    #[test]
    fn only_exact_hosts_and_their_own_pages_are_allowed() {
        #[rustfmt::skip]
        let cases: [Case; 43] = [
            (&["localhost"],                  None, None, "ok"),
            (&["LocalHost:7433"],             None, None, "ok"),
            (&["127.0.0.1:7433"],             None, None, "ok"),
            (&["[::1]:7433"],                 None, None, "ok"),
            (&["green.example"],              None, None, "ok"),
            (&["green.example:443"],          None, None, "ok"),
            (&["pinned.example:8443"],        None, None, "ok"),
            (&["pinned.example"],             None, None, "host"),
            (&["127.evil.com"],               None, None, "host"),
            (&["localhost.evil.com"],         None, None, "host"),
            (&["localhost."],                 None, None, "host"),
            (&["evil.com"],                   None, None, "host"),
            (&["evil.com:80"],                None, None, "host"),
            (&["127.0.0.1.evil.com"],         None, None, "host"),
            (&["127.0.0.2.nip.io"],           None, None, "host"),
            (&["xlocalhost"],                 None, None, "host"),
            (&["localhostx"],                 None, None, "host"),
            (&["0.0.0.0"],                    None, None, "host"),
            (&["192.168.1.1"],                None, None, "host"),
            (&["example."],                   None, None, "host"),
            (&["127.0.0.1.:7433"],            None, None, "host"),
            (&["sub.green.example"],          None, None, "host"),
            (&["green.example.evil.com"],     None, None, "host"),
            (&["127.0.0.1:x"],                None, None, "bad"),
            (&["localhost:99999"],            None, None, "bad"),
            (&["localhost:7433/x"],           None, None, "bad"),
            (&["localhost, evil.com"],        None, None, "bad"),
            (&["user@localhost"],             None, None, "bad"),
            (&["localhost", "localhost"],     None, None, "bad"),
            (&["localhost", "evil.com"],      None, None, "bad"),
            (&[],                             None, None, "bad"),
            (&["localhost"],                  None, Some("evil.com"), "host"),
            (&["evil.com"],                   None, Some("localhost:1"), "host"),
            (&["localhost"],                  None, Some("localhost:1"), "ok"),
            (&["localhost:7433"],             Some("http://localhost:7433"), None, "ok"),
            (&["green.example"],              Some("https://green.example"), None, "ok"),
            (&["localhost:7433"],             Some("http://localhost:3000"), None, "origin"),
            (&["localhost:7433"],             Some("http://evil.com"), None, "origin"),
            (&["localhost:7433"],             Some("null"), None, "origin"),
            (&["localhost:7433"],             Some("file://"), None, "origin"),
            (&["localhost:7433"],             Some("http://evil.com:7433"), None, "origin"),
            (&["localhost:7433"],             Some("http://localhost.:7433"), None, "origin"),
            (&["localhost:7433"],             Some("http://localhost:7433.evil.com"), None, "origin"),
        ];
        for (hosts, origin, target, verdict) in cases {
            assert_eq!(check(hosts, origin, target), verdict, "{hosts:?} {origin:?} {target:?}");
        }
    }
}
