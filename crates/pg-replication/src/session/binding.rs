//! Channel binding of type `tls-server-end-point` (RFC 5929): a hash of the server's certificate that goes into the SCRAM proof. A man in the middle
//! has another certificate. So the server refuses the proof that he passes on, whatever certificates the client trusts.

use ring::digest::{self, Algorithm, SHA256, SHA384, SHA512};

/// The binding data for a server's certificate in DER. `None` if the certificate's signature uses no hash of its own (Ed25519), for which the RFC
/// defines nothing, or a hash that is not known here. Postgres has no binding data in these cases either.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_hash(certificate)?;
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The hash that the certificate's signature uses. The RFC replaces MD5 and SHA-1 by SHA-256.
fn signature_hash(certificate: &[u8]) -> Option<&'static Algorithm> {
    let (fields, _) = take_value(SEQUENCE, certificate)?;
    let (_to_be_signed, rest) = take_value(SEQUENCE, fields)?;
    let (algorithm, _) = take_value(SEQUENCE, rest)?;
    let (identifier, parameters) = take_value(OBJECT_IDENTIFIER, algorithm)?;
    match identifier {
        // 1.2.840.113549.1.1: RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512, and PSS, whose parameters name the hash.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last] => match last {
            4 | 5 | 11 => Some(&SHA256),
            12 => Some(&SHA384),
            13 => Some(&SHA512),
            10 => pss_hash(parameters),
            _ => None,
        },
        // 1.2.840.10045.4: ECDSA with SHA-1, SHA-256, SHA-384, SHA-512.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => Some(&SHA256),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => Some(&SHA384),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => Some(&SHA512),
        _ => None,
    }
}

/// The hash that RSASSA-PSS-params (RFC 4055) name in field 0. Without that field it is SHA-1.
fn pss_hash(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (parameters, _) = take_value(SEQUENCE, parameters)?;
    let Some((hash, _)) = take_value(FIELD_0, parameters) else {
        return Some(&SHA256);
    };
    let (hash, _) = take_value(SEQUENCE, hash)?;
    match take_value(OBJECT_IDENTIFIER, hash)?.0 {
        // 2.16.840.1.101.3.4.2: SHA-256, SHA-384, SHA-512.
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last] => match last {
            1 => Some(&SHA256),
            2 => Some(&SHA384),
            3 => Some(&SHA512),
            _ => None,
        },
        // 1.3.14.3.2.26: SHA-1.
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(&SHA256),
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const FIELD_0: u8 = 0xa0;

/// If `der` begins with this tag: its value, and the bytes behind it.
fn take_value(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first_tag, rest) = der.split_first()?;
    let (&length_byte, rest) = rest.split_first()?;
    if first_tag != tag {
        return None;
    }
    if length_byte < 0x80 {
        return rest.split_at_checked(usize::from(length_byte));
    }
    // The long form: the number of length bytes, then the length.
    let (length, rest) = rest.split_at_checked(usize::from(length_byte & 0x7f))?;
    if length.len() > 4 {
        return None;
    }
    let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
    use ring::digest::{SHA256, SHA384, SHA512};

    use super::{signature_hash, tls_server_end_point};

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    /// A certificate that has a signature algorithm and nothing else.
    fn skeleton(algorithm: &[u8]) -> Vec<u8> {
        let sequence = |inner: &[u8]| [&[0x30, u8::try_from(inner.len()).unwrap()], inner].concat();
        sequence(&[sequence(&[]), sequence(algorithm)].concat())
    }

    #[test]
    fn the_hash_is_that_of_the_certificates_signature() {
        assert_eq!(signature_hash(&certificate(&PKCS_ECDSA_P256_SHA256)), Some(&SHA256));
        assert_eq!(signature_hash(&certificate(&PKCS_ECDSA_P384_SHA384)), Some(&SHA384));
        assert_eq!(signature_hash(&certificate(&PKCS_ED25519)), None);
        assert_eq!(
            tls_server_end_point(&certificate(&PKCS_ECDSA_P384_SHA384))
                .unwrap()
                .len(),
            48
        );
        let rsa = |last| [&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1][..], &[last, 5, 0]].concat();
        for (last, hash) in [(4, &SHA256), (5, &SHA256), (11, &SHA256), (12, &SHA384), (13, &SHA512)] {
            assert_eq!(signature_hash(&skeleton(&rsa(last))), Some(hash), "{last}");
        }
        let sha384 = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
        let pss = [
            &[
                6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10, 0x30, 15, 0xa0, 13, 0x30, 11, 6, 9,
            ][..],
            &sha384,
        ]
        .concat();
        assert_eq!(signature_hash(&skeleton(&pss)), Some(&SHA384));
        let pss_of_sha1 = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10, 0x30, 0];
        assert_eq!(signature_hash(&skeleton(&pss_of_sha1)), Some(&SHA256));
    }

    #[test]
    fn a_certificate_cut_anywhere_is_no_panic() {
        let whole = certificate(&PKCS_ECDSA_P256_SHA256);
        for cut in 0..whole.len() {
            let _none_or_some = signature_hash(&whole[..cut]);
        }
    }
}
