// Package flow is about connections. It follows them from report to report, and tells whose they are (Table); and it reads what the kernel copied of them: DNS answers, and the
// ClientHello of TLS and of QUIC. It keeps which names the addresses of a network namespace have been given, and says of everything that it does not read why not, by number.
//
// What it reads is whatever anyone sent: every length is checked, what is kept is bounded, and a parser ends in a Reason and never in a panic.
//
// The formats and algorithms are those of RFC 1035, 2181, 6762 (DNS), 9460 (SVCB and HTTPS), 8446 and 9849 (TLS, encrypted ClientHello), 8701 (GREASE),
// 8999, 9000, 9001 and 9369 (QUIC); of JA3, as github.com/salesforce/ja3 describes it; and of JA4, the TLS client fingerprint alone, as
// technical_details/JA4.md of github.com/FoxIO-LLC/ja4 does. JA4 is free to implement (BSD 3-Clause); the rest of JA4+ is not, and is not here.
package flow
