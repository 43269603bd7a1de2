"""The minLSTM mixer (Feng et al., arXiv 2410.01201, section 3.2)."""

from dataclasses import dataclass

from agents.backbones.min_gru import MinimalConfig, MinimalRNN
from common.checks import number


@dataclass
class MinLSTMConfig(MinimalConfig):
    """minLSTM's own settings.

    Attributes:
        forget_bias: Initial bias of the forget gate f, and negated of the input gate i. An
            untrained layer keeps f' = sigmoid(forget_bias) of its state at each step: 88 % by
            default, as minGRU does.
    """

    name: str = "min_lstm"
    forget_bias: float = number(2.0, at_least=-100, at_most=100)


class MinLSTM(MinimalRNN):
    """h_t = f'_t h_{t-1} + i'_t g(W_h x_t) with f' = f / (f + i), i' = i / (f + i).

    f_t = sigmoid(W_f x_t), i_t = sigmoid(W_i x_t).
    """

    def __init__(self, config: MinLSTMConfig) -> None:
        super().__init__(config, gate_biases=(config.forget_bias, -config.forget_bias))
