//! The channel that a setup declares on: queues, exchanges, bindings and the prefetch, on one session.

use std::{
    mem::take,
    sync::{Arc, PoisonError},
};

use amqprs::{
    FieldTable, FieldValue,
    channel::{
        BasicConsumeArguments, BasicQosArguments, ExchangeBindArguments, ExchangeDeclareArguments,
        ExchangeDeleteArguments, ExchangeUnbindArguments, QueueBindArguments, QueueDeleteArguments,
        QueuePurgeArguments, QueueUnbindArguments,
    },
};

use crate::{
    Error, Result, broker_words,
    encoding::{
        frame_size::{check_method_frame, method_frame},
        headers::rebuilt_arguments,
        short_string::check_name,
    },
    session::{
        Session,
        declared_arguments::{Checked, check_answered},
        queue::QueueDeclaration,
    },
};

/// The broker's answer to the declaration of a queue
/// ([`queue.declare-ok`](https://www.rabbitmq.com/amqp-0-9-1-reference#queue.declare)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDeclared {
    /// The queue's name: the requested one, or the one that the broker has chosen.
    pub name: String,
    /// How many messages are ready for delivery.
    pub messages: u32,
    /// How many consumers it has at this moment.
    pub consumers: u32,
}

/// The channel that a setup or `subscribe` function declares on.
///
/// It is one session of a [`Channel`](crate::Channel) or [`Consumer`](crate::Consumer), and has its methods for queues, exchanges
/// and bindings. They take amqprs's own arguments. When the session is lost, its calls fail with
/// [`Error::Stale`]; the function then runs again, with another one.
#[derive(Clone)]
pub struct SetupChannel {
    session: Arc<Session>,
}

impl SetupChannel {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// Switches publisher confirms on, for what is published on this session.
    pub(crate) async fn confirm_select(&self) -> Result<()> {
        self.session.confirm_select().await
    }

    /// Declares a queue: creates it, or checks that it exists with these arguments
    /// ([queues](https://www.rabbitmq.com/docs/queues)). If the name is empty, the broker chooses one.
    ///
    /// It takes a [`QueueDeclaration`], which can also be made from amqprs's own arguments.
    ///
    /// ```no_run
    /// # async fn example(channel: common::SetupChannel) -> common::Result<()> {
    /// use common::quorum_queue;
    ///
    /// channel.queue_declare(quorum_queue("jobs").with("x-delivery-limit", 5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Closed`](Error::Closed): with 406 when it exists with other arguments, or one of them has a value that RabbitMQ does
    ///   not take; with 404 when it is passive and missing; with 405 when it is exclusive to another connection; with 541 when
    ///   it is neither durable nor exclusive, and this RabbitMQ takes no such queue.
    /// - [`Invalid`](Error::Invalid): the declaration contradicts itself; nothing was sent.
    pub async fn queue_declare(&self, queue: impl Into<QueueDeclaration>) -> Result<QueueDeclared> {
        let Checked { arguments, name: asked, size, exclusive, shared_and_transient } = queue.into().check()?;
        let doing = || format!("cannot declare queue `{asked}`");
        check_method_frame(&doing(), size, self.session.frame_max)?;
        let declared = self.session.call(doing, |raw| async move { raw.queue_declare(arguments).await }).await;
        let (name, messages, consumers) = declared
            .map_err(|error| match shared_and_transient {
                true => error.blame(doing, broker_words::TRANSIENT_QUEUES),
                false => error,
            })?
            .unwrap_or_default();
        if asked.is_empty()
            && exclusive
            && let Some(own) = &mut *self.session.own_queues()
        {
            own.push(name.clone());
        }
        name.clone_into(&mut self.session.last_queue.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(QueueDeclared { name, messages, consumers })
    }

    /// Binds a queue to an exchange: messages whose routing key matches the binding key go to the queue.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 404 when either is missing.
    pub async fn queue_bind(&self, mut arguments: QueueBindArguments) -> Result<()> {
        check_answered(arguments.no_wait)?;
        let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
        let doing = || format!("cannot bind queue `{queue}` to exchange `{exchange}`");
        let binding = Binding { to: ("queue name", &queue), from: &exchange, key: &arguments.routing_key };
        binding.fit(&doing(), &mut arguments.arguments, &self.session)?;
        self.session.call(doing, |raw| async move { raw.queue_bind(arguments).await }).await
    }

    /// Removes the binding that [`queue_bind`](Self::queue_bind) made with the same arguments.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) when the broker refuses.
    pub async fn queue_unbind(&self, mut arguments: QueueUnbindArguments) -> Result<()> {
        let (queue, exchange) = (arguments.queue.clone(), arguments.exchange.clone());
        let doing = || format!("cannot unbind queue `{queue}` from exchange `{exchange}`");
        let binding = Binding { to: ("queue name", &queue), from: &exchange, key: &arguments.routing_key };
        binding.fit(&doing(), &mut arguments.arguments, &self.session)?;
        self.session.call(doing, |raw| async move { raw.queue_unbind(arguments).await }).await
    }

    /// Deletes all messages of a queue, and returns how many there were.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 404 when it is missing.
    pub async fn queue_purge(&self, arguments: QueuePurgeArguments) -> Result<u32> {
        check_answered(arguments.no_wait)?;
        check_name("queue name", &arguments.queue)?;
        let queue = arguments.queue.clone();
        let doing = || format!("cannot purge queue `{queue}`");
        let purged = self.session.call(doing, |raw| async move { raw.queue_purge(arguments).await }).await;
        Ok(purged.map_err(|error| error.blame(doing, &broker_words::queue(&queue)))?.unwrap_or_default())
    }

    /// Deletes a queue (only if unused, or only if empty, when asked so), and returns how many messages it had.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 406 when it is in use or not empty.
    pub async fn queue_delete(&self, arguments: QueueDeleteArguments) -> Result<u32> {
        check_answered(arguments.no_wait)?;
        check_name("queue name", &arguments.queue)?;
        let queue = arguments.queue.clone();
        let doing = || format!("cannot delete queue `{queue}`");
        let deleted = self.session.call(doing, |raw| async move { raw.queue_delete(arguments).await }).await?;
        if let Some(own) = &mut *self.session.own_queues() {
            own.retain(|own| *own != queue);
        }
        Ok(deleted.unwrap_or_default())
    }

    /// Declares an exchange: creates it, or checks that it exists with these arguments
    /// ([exchanges](https://www.rabbitmq.com/docs/exchanges)).
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 406 when it exists with other arguments.
    pub async fn exchange_declare(&self, mut arguments: ExchangeDeclareArguments) -> Result<()> {
        check_answered(arguments.no_wait)?;
        check_name("exchange name", &arguments.exchange)?;
        check_name("exchange type", &arguments.exchange_type)?;
        if arguments.exchange_type.is_empty() && !arguments.passive {
            return Err(Error::Invalid(format!("exchange `{}` needs a type, such as `fanout`", arguments.exchange)));
        }
        let (exchange, kind) = (arguments.exchange.clone(), arguments.exchange_type.clone());
        let doing = || format!("cannot declare exchange `{exchange}`");
        fit(&doing(), &[&exchange, &kind], &mut arguments.arguments, &self.session)?;
        let declared = self.session.call(doing, |raw| async move { raw.exchange_declare(arguments).await }).await;
        // RabbitMQ 3 would close the connection.
        declared.map_err(|error| error.blame(doing, &broker_words::exchange_type(&kind)))
    }

    /// Deletes an exchange (if unused, when asked so).
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 406 when it is in use.
    pub async fn exchange_delete(&self, arguments: ExchangeDeleteArguments) -> Result<()> {
        check_answered(arguments.no_wait)?;
        check_name("exchange name", &arguments.exchange)?;
        let exchange = arguments.exchange.clone();
        let doing = || format!("cannot delete exchange `{exchange}`");
        self.session.call(doing, |raw| async move { raw.exchange_delete(arguments).await }).await
    }

    /// Binds an exchange to another one, from which it then gets messages ([exchange to exchange
    /// bindings](https://www.rabbitmq.com/docs/e2e)).
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 404 when either is missing.
    pub async fn exchange_bind(&self, mut arguments: ExchangeBindArguments) -> Result<()> {
        check_answered(arguments.no_wait)?;
        let (to, from) = (arguments.destination.clone(), arguments.source.clone());
        let doing = || format!("cannot bind exchange `{to}` to exchange `{from}`");
        let binding = Binding { to: ("exchange name", &to), from: &from, key: &arguments.routing_key };
        binding.fit(&doing(), &mut arguments.arguments, &self.session)?;
        self.session.call(doing, |raw| async move { raw.exchange_bind(arguments).await }).await
    }

    /// Removes the binding that [`exchange_bind`](Self::exchange_bind) made with the same arguments.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) when the broker refuses.
    pub async fn exchange_unbind(&self, mut arguments: ExchangeUnbindArguments) -> Result<()> {
        check_answered(arguments.no_wait)?;
        let (to, from) = (arguments.destination.clone(), arguments.source.clone());
        let doing = || format!("cannot unbind exchange `{to}` from exchange `{from}`");
        let binding = Binding { to: ("exchange name", &to), from: &from, key: &arguments.routing_key };
        binding.fit(&doing(), &mut arguments.arguments, &self.session)?;
        self.session.call(doing, |raw| async move { raw.exchange_unbind(arguments).await }).await
    }

    /// Sets how many unacknowledged deliveries the broker sends to each consumer that starts afterwards
    /// ([prefetch](https://www.rabbitmq.com/docs/consumer-prefetch)). A count of 0 means no limit.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a `prefetch_size` other than 0, and for `global`: RabbitMQ has never counted
    /// bytes, and removes the prefetch for a whole channel (quorum queues never had it).
    pub async fn basic_qos(&self, arguments: BasicQosArguments) -> Result<()> {
        if arguments.prefetch_size != 0 {
            return Err(Error::Invalid(
                "RabbitMQ cannot limit a prefetch by its size and would close the connection: set `prefetch_size` to 0 and \
                 choose a `prefetch_count`"
                    .into(),
            ));
        }
        if arguments.global {
            return Err(Error::Invalid(
                "a prefetch for the whole channel (`global`) is deprecated in RabbitMQ, and quorum queues have never had it: \
                 leave `global` off, and each consumer has the prefetch"
                    .into(),
            ));
        }
        let count = arguments.prefetch_count;
        let doing = || format!("cannot set a prefetch of {count}");
        self.session.call(doing, |raw| async move { raw.basic_qos(arguments).await }).await?;
        *self.session.prefetch.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
        Ok(())
    }
}

/// A binding: what is bound to what.
struct Binding<'a> {
    /// What the destination's name is, and the name.
    to: (&'static str, &'a str),
    from: &'a str,
    key: &'a str,
}

impl Binding<'_> {
    /// Checks the names, and makes the arguments ready to be sent with [`fit`].
    fn fit(&self, doing: &str, arguments: &mut FieldTable, session: &Session) -> Result<()> {
        let (what, to) = self.to;
        check_name(what, to)?;
        check_name("exchange name", self.from)?;
        check_name("binding key", self.key)?;
        fit(doing, &[to, self.from, self.key], arguments, session)
    }
}

/// Makes the arguments of a declaration or binding ready to be sent with these names. RabbitMQ would close the whole
/// connection because of a table with a wrong length, or one that is larger than a frame.
fn fit(doing: &str, names: &[&str], arguments: &mut FieldTable, session: &Session) -> Result<()> {
    *arguments = rebuilt_arguments(doing, take(arguments))?;
    check_method_frame(doing, method_frame(names, arguments)?, session.frame_max)
}

/// The same for a consumer.
pub(crate) fn fit_consume(mut arguments: BasicConsumeArguments, session: &Session) -> Result<BasicConsumeArguments> {
    check_consume(&arguments)?;
    let doing = format!("cannot consume from queue `{}`", arguments.queue);
    fit(&doing, &[&arguments.queue, &arguments.consumer_tag], &mut arguments.arguments, session)?;
    Ok(arguments)
}

/// Refuses what would close the channel or the connection.
fn check_consume(arguments: &BasicConsumeArguments) -> Result<()> {
    check_answered(arguments.no_wait)?;
    check_name("queue name", &arguments.queue)?;
    check_name("consumer tag", &arguments.consumer_tag)?;
    let offset = arguments.arguments.as_ref().iter().find(|(name, _)| name.as_ref() == "x-stream-offset");
    if let Some((_, FieldValue::S(offset))) = offset {
        let offset: &String = offset.as_ref();
        let is_age = |(count, unit): (&str, &str)| {
            ["Y", "M", "D", "h", "m", "s"].contains(&unit) && count.parse::<u32>().is_ok()
        };
        let last = offset.char_indices().last().map_or(0, |(last, _)| last);
        if !(["first", "last", "next"].contains(&&**offset) || is_age(offset.split_at(last))) {
            return Err(Error::Invalid(format!(
                "`x-stream-offset` is `{offset}`; it has to be `first`, `last`, `next`, an age such as `7D` or `1h`, a number, \
                 or a time"
            )));
        }
    }
    Ok(())
}
