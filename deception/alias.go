package deception

import "net/netip"

// aliasPool names one of a service's alias prefixes.
type aliasPool struct {
	service string
	prefix  netip.Prefix
}

// aliasPools counts how many addresses of each pool are given away. They are
// given out in the document's order, so that decoys that are added at its end
// leave the others' as they were.
type aliasPools map[aliasPool]uint64

// take gives out the next n addresses of a pool and returns the first of them,
// or the zero Addr where the pool does not hold so many more.
func (p aliasPools) take(pool aliasPool, n uint64) netip.Addr {
	first := Nth(pool.prefix.Masked().Addr(), p[pool])
	if !first.IsValid() || !pool.prefix.Contains(Nth(first, n-1)) {
		return netip.Addr{}
	}
	p[pool] += n
	return first
}

// resume goes on where the document stood before the decoy.
func (p aliasPools) resume(d *Decoy) {
	for _, a := range d.Aliases {
		p[aliasPool{a.Service, a.Pool}] = a.Used
	}
}

// aliasStarts returns, for each decoy of the state, where the pools of the
// services that it is bound to stand before it. Decoys and services without
// aliases have none.
func (s *State) aliasStarts() [][]AliasStart {
	out := make([][]AliasStart, len(s.Decoys))
	pools := aliasPools{}
	for i := range s.Decoys {
		d := &s.Decoys[i]
		pools.resume(d)
		seen := map[aliasPool]bool{}
		for _, b := range d.Bind {
			v := s.Service(b.Service)
			if v == nil {
				continue
			}
			for _, prefix := range v.Aliases {
				pool := aliasPool{v.Name, prefix}
				if !seen[pool] {
					seen[pool] = true
					out[i] = append(out[i], AliasStart{Service: v.Name, Pool: prefix, Used: pools[pool]})
				}
			}
		}
		if out[i] != nil {
			newEntries(s, d, pools)
		}
	}
	return out
}
