"""The engine ``Forward``: real interventions, every layer after the edit computed again."""

import torch

from ..compare import by_pathway, changes
from ..frequency import put_back
from ..prediction import Prediction
from ..readout import take


class Forward:
    """The model's own logits in copies of the text, one an edit: any layer, any measure."""

    copies = True

    def fill(self, tally, observed, clean):
        """Find all effects; ``clean`` are measures of the unedited model, (T,) each."""
        unit = observed.unit
        effects, rows = unit.effects, unit.tokens.rows
        for tokens in unit.tokens.chosen().to(observed.raw.device).split(observed.sizes()[1]):
            if not len(tokens):
                continue
            targets = observed.targets[tokens]
            before = Prediction(observed.logits(tokens), targets, observed.given(tokens))
            known = {name: values[tokens] for name, values in clean.items()}
            unmoved = take(observed.residual[:rows], observed.positions[tokens])
            for j in range(unit.copies):
                copy = slice(rows * (j + 1), rows * (j + 2))
                residual = take(observed.residual[copy], observed.positions[tokens])
                still = (residual == unmoved).all(-1, keepdim=True)
                given = observed.given(tokens, observed.readout.norm_scale(residual.float()))
                out = torch.empty(len(targets), len(effects))
                for pathway, places in by_pathway(effects).items():
                    logits = copied(observed, copy, tokens, pathway, before.logits)
                    logits = torch.where(still, before.logits, logits)  # to the last bit
                    after = Prediction(logits, targets, given)
                    own = [effects[column] for column in places]
                    for column, value in zip(places, changes(before, after, own, known)):
                        out[:, column] = value
                # An expert's neuron was replaced by NaN: its value is not known.
                unknown = residual.isnan().any(-1)[None] if observed.routed else None
                tally.add(slice(j, j + 1), tokens.cpu(), out[None], unknown)


def copied(observed, copy, tokens, pathway, before):
    """Final logits of one pathway in one copy of the clean rows, (t, V)."""
    readout, positions = observed.readout, observed.positions[tokens]
    if pathway == "direct" and readout.normed:
        clean = take(observed.residual[: observed.unit.tokens.rows], positions).float()
        edited = readout.centre(take(observed.residual[copy], positions).float())
        edited = readout.gain * edited / readout.norm_scale(clean)[:, None]
        return readout.finish(readout.unembed(edited) + readout.offset)
    logits = readout.finish(take(observed.raw[copy], positions).float())
    put = pathway == "frequency_direct"
    return put_back(logits, before, observed.frequency) if put else logits
