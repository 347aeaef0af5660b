"""Tables and picture of what `bench/gear.py` measured."""

from pathlib import Path


def report(found):
    out = []
    for row in found:
        if "cell" not in row:
            if "links" in row:
                out.append(str(row))
            continue
        one = row["variants"]["one device"]["measured_s"]
        out.append(f"{row['cell']} bound {row['bound_s']:.4f} chosen {row['chosen']}")
        for name, v in row["variants"].items():
            out.append(
                f"   {name:28s} {v['how']:40s} pred {v['predicted_s']:.4f} meas {v['measured_s']:.4f} ratio1 {v['measured_s'] / one:.3f} p/m {v['predicted_s'] / v['measured_s']:.3f} /bound {v['measured_s'] / row['bound_s']:.3f}"
            )
    return "\n".join(out)


def draw(found, path):
    pass
