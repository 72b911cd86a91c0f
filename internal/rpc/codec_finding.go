package rpc

import (
	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"
)

// EncodeFinding writes a finding as a message, which shares the finding's document.
func EncodeFinding(f *deception.Finding) *decoynetv1.Finding {
	m := &decoynetv1.Finding{
		Id:          f.ID[:],
		Time:        encodeTime(f.Time),
		Node:        validText(f.Node),
		Kind:        validText(f.Kind),
		Source:      encodeAddr(f.Source),
		Destination: encodeAddr(f.Destination),
		Transport:   uint32(f.Transport),
		Application: validText(f.Application),
		Document:    f.Document,
		FeedLost:    f.FeedLost,
		Partial:     f.Partial,
		Scanner:     validText(f.Scanner),
	}
	if !f.Session.IsZero() {
		m.Session = f.Session[:]
	}
	if a := f.Alert; a != nil {
		m.Alert = &decoynetv1.Alert{
			Gid: a.GID, Sid: a.SID, Revision: a.Revision, Signature: validText(a.Signature), Category: validText(a.Category),
			Severity: uint32(a.Severity), ToService: a.ToService,
		}
	}
	if p := f.Of; p != (deception.Place{}) {
		m.Place = &decoynetv1.Place{Node: validText(p.Node), Segment: validText(p.Segment), Decoy: validText(p.Decoy), Service: validText(p.Service)}
	}
	return m
}

// DecodeFinding reads what EncodeFinding wrote, sharing the message's document. A
// transport is taken as it is: Suricata may be fed with others than a relay has.
func DecodeFinding(m *decoynetv1.Finding) (deception.Finding, error) {
	d := decoder{kind: "finding"}
	f := deception.Finding{
		ID:          d.id("id", m.GetId()),
		Time:        d.needTime("time", m.GetTime()),
		Node:        m.GetNode(),
		Kind:        m.GetKind(),
		Source:      d.addr("source", m.GetSource()),
		Destination: d.addr("destination", m.GetDestination()),
		Transport:   deception.Transport(d.small("transport", m.GetTransport())),
		Application: m.GetApplication(),
		Document:    m.GetDocument(),
		FeedLost:    m.GetFeedLost(),
		Partial:     m.GetPartial(),
		Scanner:     m.GetScanner(),
		Of: deception.Place{
			Node: m.GetPlace().GetNode(), Segment: m.GetPlace().GetSegment(), Decoy: m.GetPlace().GetDecoy(), Service: m.GetPlace().GetService(),
		},
	}
	if len(m.GetSession()) > 0 {
		f.Session = d.id("session", m.GetSession())
	}
	if f.Kind == "" {
		d.fail("kind", "is empty")
	}
	if len(f.Document) > deception.FindingBytes {
		d.fail("document", "has %d bytes; at most %d", len(f.Document), deception.FindingBytes)
	}
	if a := m.GetAlert(); a != nil {
		f.Alert = &deception.Alert{
			GID: a.GetGid(), SID: a.GetSid(), Revision: a.GetRevision(), Signature: a.GetSignature(), Category: a.GetCategory(),
			Severity: d.small("alert.severity", a.GetSeverity()), ToService: a.GetToService(),
		}
	}
	return f, d.err
}

// small is a number of one byte.
func (d *decoder) small(field string, n uint32) uint8 {
	if n > 255 {
		d.fail(field, "is %d; at most 255", n)
	}
	return uint8(n)
}

func encodeAnalysis(a *deception.Analysis) *decoynetv1.Analysis {
	if a == nil {
		return nil
	}
	return &decoynetv1.Analysis{
		Findings: a.Findings, Alerts: a.Alerts, Severity: uint32(a.Severity), Application: validText(a.Application),
		UserAgent: validText(a.UserAgent), Ja3: validText(a.JA3), Ja4: validText(a.JA4), Ssh: validText(a.SSH), Hassh: validText(a.HASSH),
		ServerName: validText(a.ServerName), User: validText(a.User), Partial: a.Partial,
	}
}

func (d *decoder) analysis(m *decoynetv1.Analysis) *deception.Analysis {
	if m == nil {
		return nil
	}
	return &deception.Analysis{
		Findings: m.GetFindings(), Alerts: m.GetAlerts(), Severity: d.small("analysis.severity", m.GetSeverity()), Application: m.GetApplication(),
		UserAgent: m.GetUserAgent(), JA3: m.GetJa3(), JA4: m.GetJa4(), SSH: m.GetSsh(), HASSH: m.GetHassh(),
		ServerName: m.GetServerName(), User: m.GetUser(), Partial: m.GetPartial(),
	}
}
