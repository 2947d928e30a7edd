//! TLS to Postgres by rustls, with the meanings of libpq's `sslmode`.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::target::{Target, TlsMode};

/// The server was asked for TLS and has none.
pub(super) const NO_TLS: &str = "the server has no TLS, but sslmode demands it";

/// A handshake that is ready to begin: the files of our certificates and keys have been read. The server has said that it has TLS.
pub(super) struct Handshake {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Handshake {
    /// Reads the files that the handshake needs.
    ///
    /// # Errors
    /// A certificate or key file cannot be read, or `host` is no host name.
    pub(super) fn prepare(target: &Target, host: &str) -> anyhow::Result<Self> {
        Ok(Self {
            connector: TlsConnector::from(client_config(target)?),
            name: ServerName::try_from(host.to_owned()).with_context(|| format!("`{host}` is no host name"))?,
        })
    }

    /// Does the handshake on this stream.
    ///
    /// # Errors
    /// One side refuses the other's certificate, or the two have no version or cipher of TLS in common.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) -> anyhow::Result<TlsStream<S>> {
        let secured = self.connector.connect(self.name, stream).await;
        secured.context("TLS handshake failed")
    }
}

/// Warns that a session goes on without TLS. `sslmode=prefer` allows that, as in libpq.
pub(super) fn warn_about_missing_tls(server: &impl Display, err: &(impl Display + ?Sized)) {
    tracing::warn!(%server, error = format!("{err:#}"), "sslmode prefer goes on without TLS");
}

/// The TLS configuration that `target` asks for.
///
/// # Errors
/// A certificate or key file that cannot be read, or no trusted root where one is needed.
fn client_config(target: &Target) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let checks_chain = match target.tls {
        TlsMode::Disable | TlsMode::Prefer => false,
        TlsMode::Require => target.root_certificates.is_some(),
        TlsMode::VerifyCa | TlsMode::VerifyFull => true,
    };
    let chain_verifier = if checks_chain {
        Some(WebPkiServerVerifier::builder_with_provider(Arc::new(trusted_roots(target)?), provider.clone()).build()?)
    } else {
        None
    };
    let verifier = Verifier {
        provider,
        chain_verifier,
        checks_name: target.tls == TlsMode::VerifyFull,
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &target.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("cannot read sslcert {}", certificate.display()))?;
            let key =
                PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read sslkey {}", key.display()))?;
            builder
                .with_client_auth_cert(chain, key)
                .context("sslcert and sslkey do not fit together")?
        }
    };
    Ok(Arc::new(config))
}

fn trusted_roots(target: &Target) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &target.root_certificates {
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read sslrootcert {}", path.display()))?;
        for certificate in certificates {
            roots
                .add(certificate)
                .with_context(|| format!("a certificate in sslrootcert {} is invalid", path.display()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    anyhow::ensure!(!roots.is_empty(), "no trusted root certificate: give sslrootcert");
    Ok(roots)
}

/// Checks what the `sslmode` asks for: nothing, the chain, or the chain and the name. Signatures are always checked.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    chain_verifier: Option<Arc<WebPkiServerVerifier>>,
    checks_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain_verifier) = &self.chain_verifier else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain_verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked after the chain. So this error says that the chain is good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
